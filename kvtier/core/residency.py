"""Which blocks a tier holds, and how they hang together."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from kvtier.core.block import BlockKey, Lane
from kvtier.core.index import HashColumn, HashIndex

NONE = -1
_GROWTH_ROWS = 64


class Residency:
    """The blocks of one size class of one tier: hash to row, row to slot, child to parent.

    Columns are arrays indexed by row, so that a million blocks are a dozen objects to the garbage
    collector. Rows are used again; a row is valid until `remove`. Not thread-safe: the event loop
    owns it.

    A block whose parent is not here is an orphan: it is kept, waits under its parent's hash, and
    becomes a child when the parent arrives. A child's position is always greater than its parent's,
    whatever a worker claims, so that there are no circles.

    `first_child` (row, or -1) is for others to read; `slot` (-1 for a row not in use) may be set.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._indexes: list[HashIndex] = []
        self._orphans: list[dict[bytes, int]] = []
        self._lane_numbers: dict[Lane, int] = {}
        self._hash = HashColumn()
        self._lane = array("I")
        self._position = array("I")
        self._parent = array("i")
        self.first_child = array("i")
        self._next = array("i")
        self._previous = array("i")
        self._awaited: dict[int, bytes] = {}
        self._free: list[int] = []
        self.slot = array("q")

    def __len__(self) -> int:
        return len(self._hash) - len(self._free)

    def find(self, lane: Lane, block_hash: bytes) -> int:
        """The row of a block, or -1."""
        number = self._lane_numbers.get(lane)
        return NONE if number is None else self._indexes[number].get(block_hash)

    def find_many(self, lane: Lane, hashes: Iterable[bytes]) -> list[int]:
        """The rows of many blocks of a lane, -1 where absent."""
        number = self._lane_numbers.get(lane)
        if number is None:
            return [NONE for _ in hashes]
        return self._indexes[number].get_many(hashes)

    def insert(
        self, lane: Lane, block_hash: bytes, parent_hash: bytes, position: int, slot: int
    ) -> int:
        """Adds a block that is not here yet and returns its row."""
        number = self._lane_number(lane)
        index, orphans = self._indexes[number], self._orphans[number]
        row = self._new_row()
        self._hash[row] = block_hash
        self._lane[row] = number
        self._position[row] = position
        self.slot[row] = slot
        index.put(block_hash, row)
        if parent_hash:
            parent = index.get(parent_hash)
            if parent == NONE:
                self._await(row, parent_hash)
            else:
                self._link(row, parent)
        if block_hash in orphans:
            for child in list(self._siblings(orphans[block_hash])):
                self._unlink(child)
                self._link(child, row)
        return row

    def remove(self, row: int) -> int:
        """Forgets a block and returns its parent's row, or -1. Its children become orphans."""
        block_hash = self._hash[row]
        self._indexes[self._lane[row]].pop(block_hash)
        parent = self._parent[row]
        self._unlink(row)
        for child in list(self._siblings(self.first_child[row])):
            self._unlink(child)
            self._await(child, block_hash)
        self._hash[row] = b""
        self.slot[row] = NONE
        self._free.append(row)
        return parent

    def is_leaf(self, row: int) -> bool:
        return self.first_child[row] == NONE

    def parent(self, row: int) -> int:
        return self._parent[row]

    def position(self, row: int) -> int:
        return self._position[row]

    def positions(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of many rows."""
        positions: npt.NDArray[np.int64] = np.frombuffer(self._position, np.uint32)[rows].astype(
            np.int64
        )
        return positions

    def is_only_child(self, row: int) -> bool:
        """Whether a block that has its parent here is the only one to continue it."""
        return self._next[row] == NONE and self._previous[row] == NONE

    def children(self, row: int) -> Iterator[int]:
        """Blocks here that continue a block."""
        return self._siblings(self.first_child[row])

    def continuations(self, lane: Lane, block_hash: bytes) -> list[bytes]:
        """Hashes of the blocks here that continue a block, which itself may be elsewhere."""
        number = self._lane_numbers.get(lane)
        if number is None:
            return []
        row = self._indexes[number].get(block_hash)
        waiting = self._orphans[number].get(block_hash, NONE)
        head = waiting if row == NONE else self.first_child[row]
        return [self._hash[each] for each in self._siblings(head)]

    @property
    def row_count(self) -> int:
        """Rows are below this number; `slot` is -1 for those not in use."""
        return len(self.slot)

    def describe(self, row: int) -> tuple[Lane, bytes]:
        """The lane and the hash of a row."""
        return self._lanes[self._lane[row]], self._hash[row]

    def key(self, row: int) -> BlockKey:
        """All that was said of a block when it was inserted, as far as it was believed."""
        parent = self._parent[row]
        parent_hash = self._awaited.get(row, b"") if parent == NONE else self._hash[parent]
        lane = self._lanes[self._lane[row]]
        return BlockKey(lane, self._hash[row], parent_hash, self._position[row])

    def _lane_number(self, lane: Lane) -> int:
        number = self._lane_numbers.get(lane)
        if number is None:
            number = self._lane_numbers[lane] = len(self._lanes)
            self._lanes.append(lane)
            self._indexes.append(HashIndex())
            self._orphans.append({})
        return number

    def _new_row(self) -> int:
        if not self._free:
            self._grow()
        return self._free.pop()

    def _grow(self) -> None:
        """Rows for the next blocks: to extend columns together is much faster than one by one."""
        first = len(self._hash)
        self._hash.extend(_GROWTH_ROWS)
        zeros, nones = [0] * _GROWTH_ROWS, [NONE] * _GROWTH_ROWS
        self._lane.extend(zeros)
        self._position.extend(zeros)
        for column in (self._parent, self.first_child, self._next, self._previous, self.slot):
            column.extend(nones)
        self._free.extend(range(first + _GROWTH_ROWS - 1, first - 1, -1))

    def _link(self, row: int, parent: int) -> None:
        if self._position[parent] >= self._position[row]:
            return
        self._parent[row] = parent
        self._push(row, self.first_child[parent])
        self.first_child[parent] = row

    def _await(self, row: int, parent_hash: bytes) -> None:
        orphans = self._orphans[self._lane[row]]
        self._awaited[row] = parent_hash
        self._push(row, orphans.get(parent_hash, NONE))
        orphans[parent_hash] = row

    def _push(self, row: int, head: int) -> None:
        self._next[row] = head
        if head != NONE:
            self._previous[head] = row

    def _unlink(self, row: int) -> None:
        before, after, parent = self._previous[row], self._next[row], self._parent[row]
        awaited = self._awaited.pop(row, None)
        if after != NONE:
            self._previous[after] = before
        if before != NONE:
            self._next[before] = after
        elif parent != NONE:
            self.first_child[parent] = after
        elif awaited is not None:
            orphans = self._orphans[self._lane[row]]
            if after != NONE:
                orphans[awaited] = after
            else:
                del orphans[awaited]
        self._parent[row] = self._next[row] = self._previous[row] = NONE

    def _siblings(self, head: int) -> Iterator[int]:
        while head != NONE:
            after = self._next[head]
            yield head
            head = after

    def check_integrity(self, is_slot_of: Callable[[int, int], bool]) -> None:
        """Raises AssertionError if links disagree; `is_slot_of(slot, row)` judges the slots."""
        seen = 0
        for number, index in enumerate(self._indexes):
            for block_hash in index:
                row = index.get(block_hash)
                seen += 1
                assert (self._hash[row], self._lane[row]) == (block_hash, number), row
                assert is_slot_of(self.slot[row], row), (row, self.slot[row])
                for child in self._siblings(self.first_child[row]):
                    assert self._parent[child] == row, (row, child)
                parent = self._parent[row]
                if parent != NONE:
                    assert row in self._siblings(self.first_child[parent]), row
                    assert row not in self._awaited, row
            for parent_hash, head in self._orphans[number].items():
                assert index.get(parent_hash) == NONE, parent_hash.hex()
                for each in self._siblings(head):
                    assert self._awaited[each] == parent_hash
                    assert self._parent[each] == NONE
        assert seen == len(self), (seen, len(self))

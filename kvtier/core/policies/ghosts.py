"""Blocks that are gone and still remembered."""

from __future__ import annotations

from array import array

from kvtier.core.block import Lane
from kvtier.core.index import HashColumn, HashIndex
from kvtier.core.residency import NONE

_END = 0
_GROWTH = 64


def name_of(lane: Lane, block_hash: bytes) -> bytes:
    """What a block is remembered by: hashes of different lanes are different names."""
    if lane == (0, 0):
        return block_hash
    return block_hash + lane.group.to_bytes(4) + lane.shard.to_bytes(4)


class Ghosts:
    """Names of blocks in the order in which they came, each with a number; oldest first.

    As `HashIndex`: nothing for the garbage collector to walk, O(1), no long turns.
    """

    def __init__(self) -> None:
        self._by_name = HashIndex()
        self._names = HashColumn()
        self._names.extend(1)
        self._next = array("i", [_END])
        self._previous = array("i", [_END])
        self._number = array("q", [0])
        self._free: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: bytes) -> bool:
        return self._by_name.get(name) != NONE

    def get(self, name: bytes) -> int:
        """Its number, which is not negative; -1 if it is not remembered."""
        ghost = self._by_name.get(name)
        return NONE if ghost == NONE else self._number[ghost]

    def add(self, name: bytes, number: int = 0) -> None:
        """As the youngest; one that is here becomes that, with its new number."""
        ghost = self._by_name.get(name)
        if ghost != NONE:
            self._unlink(ghost)
        else:
            ghost = self._new_ghost()
            self._names[ghost] = name
            self._by_name.put(name, ghost)
        self._number[ghost] = number
        last = self._previous[_END]
        self._next[last] = self._previous[_END] = ghost
        self._next[ghost], self._previous[ghost] = _END, last

    def discard(self, name: bytes) -> bool:
        """Forgets it; whether it was here."""
        ghost = self._by_name.pop(name)
        if ghost == NONE:
            return False
        self._drop(ghost)
        return True

    def trim(self, most: float) -> None:
        """Forgets the oldest until no more than so many are left."""
        while self._count > most and self._count:
            ghost = self._next[_END]
            self._by_name.pop(self._names[ghost])
            self._drop(ghost)

    def _new_ghost(self) -> int:
        if not self._free:
            first = len(self._next)
            for column in (self._next, self._previous, self._number):
                column.extend([0] * _GROWTH)
            self._names.extend(_GROWTH)
            self._free.extend(range(first + _GROWTH - 1, first - 1, -1))
        self._count += 1
        return self._free.pop()

    def _drop(self, ghost: int) -> None:
        self._unlink(ghost)
        self._names[ghost] = b""
        self._free.append(ghost)
        self._count -= 1

    def _unlink(self, ghost: int) -> None:
        before, after = self._previous[ghost], self._next[ghost]
        self._next[before], self._previous[after] = after, before

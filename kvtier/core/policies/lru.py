"""Least recently used."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, Blocks, Context

_END = 0
_UNLINKED = -1
_WALK_LIMIT = 32


class Lru:
    """Evicts the candidate that was touched longest ago (Mattson et al., IBM Systems Journal 1970).

    Candidates, which are the ends of prefixes, stand in a circular list in the order of their last
    touch, coldest first; node `row + 1` is a row, node 0 the end of the list. A block that becomes
    a candidate late (its last child went, or a lease ended) is put where its stamp belongs, looked
    for within 32 steps of either end; failing that, 32 steps from the hot end.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        self._is_evictable = blocks.is_evictable
        self._ticks = context.ticks
        self._stamp = array("Q", [0])
        self._next = array("i", [_END])
        self._previous = array("i", [_END])

    def ask(self, keys: BlockKeys) -> None:
        pass

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        return ALWAYS

    def insert(self, row: int) -> None:
        if row + 1 == len(self._stamp):
            self._stamp.append(0)
            self._next.append(_UNLINKED)
            self._previous.append(_UNLINKED)
        self._stamp[row + 1] = next(self._ticks)

    def insert_cold(self, row: int) -> None:
        """As if it had been used when the coldest candidate was."""
        self.insert(row)
        if (coldest := self._next[_END]) != _END:
            self._stamp[row + 1] = self._stamp[coldest]

    def touch(self, rows: Sequence[int]) -> None:
        stamps, following, ticks = self._stamp, self._next, self._ticks
        for row in reversed(rows):
            node = row + 1
            stamps[node] = next(ticks)
            if following[node] != _UNLINKED:
                self._unlink(node)
                self._link_after(node, self._previous[_END])

    def keep(self, rows: Sequence[int]) -> None:
        self.touch(rows)

    def release(self, row: int) -> None:
        if self._next[row + 1] == _UNLINKED and self._is_evictable(row):
            self._link_after(row + 1, self._colder_neighbour(self._stamp[row + 1]))

    def remove(self, row: int) -> None:
        if self._next[row + 1] != _UNLINKED:
            self._unlink(row + 1)

    def victim(self, worth: float = ALWAYS) -> int:
        while (node := self._next[_END]) != _END:
            if self._is_evictable(node - 1):
                return node - 1
            self._unlink(node)  # `release` brings it back
        return -1

    def coldest(self, count: int) -> list[int]:
        rows: list[int] = []
        node = self._next[_END]
        while node != _END and len(rows) < count:
            rows.append(node - 1)
            node = self._next[node]
        return rows

    def rank(self, row: int) -> int:
        return self._stamp[row + 1]

    def _colder_neighbour(self, stamp: int) -> int:
        """The node after which a block with this stamp belongs."""
        stamps, node = self._stamp, self._previous[_END]
        if stamp <= stamps[self._next[_END]]:  # the parent of what was just evicted
            return _END
        for _ in range(_WALK_LIMIT):
            if node == _END or stamps[node] <= stamp:
                return node
            node = self._previous[node]
        near_hot_end, node = node, self._next[_END]
        for _ in range(_WALK_LIMIT):
            if stamps[node] > stamp:
                return self._previous[node]
            node = self._next[node]
        return near_hot_end

    def _link_after(self, node: int, before: int) -> None:
        after = self._next[before]
        self._next[before] = self._previous[after] = node
        self._next[node], self._previous[node] = after, before

    def _unlink(self, node: int) -> None:
        before, after = self._previous[node], self._next[node]
        self._next[before], self._previous[after] = after, before
        self._next[node] = self._previous[node] = _UNLINKED

"""Least recently used."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator

from kvtier.core.policies.base import Evictable

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_REFRESH_LIMIT = 64


class Lru:
    """Evicts the candidate that was touched longest ago.

    A touch writes a stamp and nothing else. Candidates stand in a heap under the stamp they had
    when they were pushed; an entry that comes to the top is pushed again under its present stamp,
    or dropped if it is not evictable (`release` brings it back). After 64 refreshes in one call the
    top is taken as it is, so that no call is long; as in Redis, LRU is then approximate.
    Textbook LRU (Mattson et al., IBM Systems Journal 1970) but for that limit.

    `ticks` is shared by all policies of a tier, so that ranks compare.
    """

    def __init__(self, evictable: Evictable, ticks: Iterator[int]) -> None:
        self._evictable = evictable
        self._ticks = ticks
        self._stamp = array("Q")
        self._queued = bytearray()
        self._heap: list[int] = []

    def insert(self, row: int) -> None:
        if row == len(self._stamp):
            self._stamp.append(0)
            self._queued.append(0)
        self._stamp[row] = next(self._ticks)

    def touch(self, row: int) -> None:
        self._stamp[row] = next(self._ticks)

    def release(self, row: int) -> None:
        if not self._queued[row] and self._evictable(row):
            self._queued[row] = 1
            heapq.heappush(self._heap, self._entry(row))

    def remove(self, row: int) -> None:
        """Nothing to do: an entry left in the heap is dropped or refreshed when it comes up."""

    def victim(self) -> int:
        heap, refreshed = self._heap, 0
        while heap:
            row = heap[0] & _ROW_MASK
            if not self._evictable(row):
                heapq.heappop(heap)
                self._queued[row] = 0
                continue
            entry = self._entry(row)
            if entry == heap[0] or refreshed == _REFRESH_LIMIT:
                return row
            heapq.heapreplace(heap, entry)
            refreshed += 1
        return -1

    def rank(self, row: int) -> int:
        return self._stamp[row]

    def _entry(self, row: int) -> int:
        return self._stamp[row] << _ROW_BITS | row

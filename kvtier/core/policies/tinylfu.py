"""W-TinyLFU."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.queued import Queued
from kvtier.core.policies.sketch import Sketch
from kvtier.core.residency import NONE

_WINDOW, _PROBATION, _PROTECTED = 0, 1, 2
_WINDOW_SHARE: Final = 0.01
_PROTECTED_SHARE: Final = 0.8
#: So many blocks before one follow it to another queue.
_MOST_FOLLOWERS: Final = 256


class TinyLfu(Queued):
    """Keeps what was used more often lately (W-TinyLFU; Einziger, Friedman and Manes, TOS 2017).

    A window of one hundredth of the blocks, least recently used, and a main part of two: what is
    used again there is protected, up to four fifths of it. The coldest block of the window goes to
    the main part if a sketch says that it was used more often than the coldest there, which then
    goes in its stead. The blocks before one follow it, as their own turn does not come.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context, 3)
        self._sketch = Sketch()
        self._fingerprint = array("Q")
        #: Of the last duel: who moves to the main part when the other one goes.
        self._winner = self._loser = NONE
        self._has_room = True

    def insert(self, row: int) -> None:
        self._count(row)
        self._enter(row, _WINDOW)
        if self._has_room:
            self._fill_main()
        self._has_room = True

    def insert_cold(self, row: int) -> None:
        self._count(row)
        self._enter_cold(row, _WINDOW)
        self._has_room = True

    def _fill_main(self) -> None:
        """While there is room, nothing has to win a duel."""
        sizes = self._queues.sizes
        if sizes[_WINDOW] > max(1.0, _WINDOW_SHARE * sum(sizes)):
            oldest = self._queues.coldest(_WINDOW)
            if oldest != NONE:
                self._lead(oldest, _WINDOW, _MOST_FOLLOWERS)

    def _count(self, row: int) -> None:
        if row >= len(self._fingerprint):
            self._fingerprint.extend([0] * (row + 1 - len(self._fingerprint)))
        lane, block_hash = self._residency.describe(row)
        own = int.from_bytes(block_hash[:8], "little") ^ int.from_bytes(block_hash[8:16], "big")
        self._fingerprint[row] = own ^ (lane.group << 32 | lane.shard)
        self._sketch.add(self._fingerprint[row])

    def touch(self, rows: Sequence[int]) -> None:
        fingerprint, add = self._fingerprint, self._sketch.add
        for row in rows:
            add(fingerprint[row])
        queues, stamps = self._queues, self._stamp
        for row in reversed(rows):
            stamps[row] = stamp = next(self._ticks)
            queue = queues.queue_of[row + queues.count]
            queues.move(row, _WINDOW if queue == _WINDOW else _PROTECTED, stamp)
        self._limit_protected()

    def keep(self, rows: Sequence[int]) -> None:
        queues, stamps = self._queues, self._stamp
        for row in reversed(rows):
            stamps[row] = stamp = next(self._ticks)
            queues.move(row, queues.queue_of[row + queues.count], stamp)

    def _limit_protected(self) -> None:
        """What was protected longest is on probation again."""
        sizes, queues = self._queues.sizes, self._queues
        limit = _PROTECTED_SHARE * (sizes[_PROBATION] + sizes[_PROTECTED])
        while sizes[_PROTECTED] > limit and (row := queues.coldest(_PROTECTED)) != NONE:
            self._lead(row, _PROTECTED, int(sizes[_PROTECTED] - limit + 1))

    def _lead(self, row: int, origin: int, most: int) -> None:
        """From a queue to probation, and after it those before it that have no other end."""
        queues, residency = self._queues, self._residency
        for _ in range(most):
            queues.move(row, _PROBATION, next(self._ticks))
            if not residency.is_only_child(row) or (row := residency.parent(row)) == NONE:
                return
            if queues.queue_of[row + queues.count] != origin:
                return

    def remove(self, row: int) -> None:
        self._has_room = False
        if row == self._loser:
            self._lead(self._winner, _WINDOW, _MOST_FOLLOWERS)
        if row in (self._loser, self._winner):
            self._loser = self._winner = NONE
        self._queues.leave(row)

    def victim(self, worth: float = ALWAYS) -> int:
        self._winner = self._loser = NONE
        sizes = self._queues.sizes
        blocks = sum(sizes)
        self._sketch.widen(blocks)
        old = self._first_evictable(_PROBATION)
        if old == NONE:
            old = self._first_evictable(_PROTECTED)
        if old != NONE and sizes[_WINDOW] < max(1.0, _WINDOW_SHARE * blocks):
            return old
        young = self._first_evictable(_WINDOW)
        if NONE in (old, young):
            return max(old, young)
        estimate, fingerprint = self._sketch.estimate, self._fingerprint
        if estimate(fingerprint[young]) <= estimate(fingerprint[old]):
            return young
        self._winner, self._loser = young, old
        return old

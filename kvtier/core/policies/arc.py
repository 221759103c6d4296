"""ARC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.ghosts import Ghosts
from kvtier.core.policies.queued import Queued
from kvtier.core.residency import NONE

_ONCE, _OFTEN = 0, 1


class Arc(Queued):
    """Balances between recent and frequent blocks (Megiddo and Modha, FAST 2003).

    Blocks used once and blocks used more often, each coldest first. As many as there are blocks are
    remembered of those that went; one that comes back says which of the two should have been
    larger. The capacity is the number of blocks here when one goes.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context, 2)
        self._ghosts: Final = (Ghosts(), Ghosts())
        self._target = 0.0

    def insert(self, row: int) -> None:
        self._enter(row, _OFTEN if self._learn(self._name(row)) else _ONCE)

    def insert_cold(self, row: int) -> None:
        self._enter_cold(row, _ONCE)

    def _learn(self, name: bytes) -> bool:
        """Whether it was here before; adapts the share of blocks used once."""
        once, often = self._ghosts
        if name in once:
            self._target += max(1.0, len(often) / len(once))
            self._target = min(self._target, float(sum(self._queues.sizes)))
            return once.discard(name)
        if name in often:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(often)))
            return often.discard(name)
        return False

    def touch(self, rows: Sequence[int]) -> None:
        stamps, ticks, move = self._stamp, self._ticks, self._queues.move
        for row in reversed(rows):
            stamps[row] = stamp = next(ticks)
            move(row, _OFTEN, stamp)

    def keep(self, rows: Sequence[int]) -> None:
        queues, stamps = self._queues, self._stamp
        for row in reversed(rows):
            stamps[row] = stamp = next(self._ticks)
            queues.move(row, queues.queue_of[row + queues.count], stamp)

    def remove(self, row: int) -> None:
        capacity = sum(self._queues.sizes)
        self._ghosts[self._queues.leave(row)].add(self._name(row))
        once, often = self._ghosts
        once.trim(capacity - self._queues.sizes[_ONCE])
        often.trim(max(0, capacity - len(once)))

    def victim(self, worth: float = ALWAYS) -> int:
        first = _ONCE if self._queues.sizes[_ONCE] > self._target else _OFTEN
        row = self._first_evictable(first)
        return self._first_evictable(1 - first) if row == NONE else row

"""S3-FIFO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.ghosts import Ghosts
from kvtier.core.policies.queued import Queued
from kvtier.core.residency import NONE

_SMALL, _MAIN = 0, 1
_MAIN_SHARE: Final = 0.9
_MOST_USES: Final = 3
_USES_TO_STAY: Final = 2
#: So many blocks are given another round for one victim.
_MOST_ROUNDS: Final = 1000


class S3Fifo(Queued):
    """Evicts what is not used again soon after it came (Yang et al., SOSP 2023).

    A small queue of a tenth of the blocks, from which those used twice move to a main one; there a
    block is given another round for each of its last uses, up to 3. What left the small queue is
    remembered, as much as the main queue has blocks, and goes straight to that one when it is
    stored again. A block with others behind it moves when it is used: its turn does not come.
    Before anything has gone, the oldest tenth is the small queue, as in libCacheSim.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context, 2)
        self._uses = bytearray()
        self._ghosts = Ghosts()
        self._is_filling = True

    def insert(self, row: int) -> None:
        self._use_none(row)
        if self._is_filling:
            self._enter(row, _MAIN)
            self._fill_small()
        else:
            self._enter(row, _MAIN if self._ghosts.discard(self._name(row)) else _SMALL)

    def _fill_small(self) -> None:
        small, main = self._queues.sizes
        if main > _MAIN_SHARE * (small + main):
            oldest = self._queues.coldest(_MAIN)
            if oldest != NONE:
                self._queues.move(oldest, _SMALL, next(self._ticks))

    def insert_cold(self, row: int) -> None:
        self._use_none(row)
        self._enter_cold(row, _SMALL)

    def _use_none(self, row: int) -> None:
        if row >= len(self._uses):
            self._uses.extend(bytes(row + 1 - len(self._uses)))
        self._uses[row] = 0

    def touch(self, rows: Sequence[int]) -> None:
        self.keep(rows)
        uses, queues = self._uses, self._queues
        for row in reversed(rows):
            if uses[row] < _MOST_USES:
                uses[row] += 1
            if uses[row] >= _USES_TO_STAY and not queues.is_in_line(row):
                self._settle(row)

    def _settle(self, row: int) -> None:
        """From the small queue to the main one."""
        queues = self._queues
        if queues.queue_of[row + queues.count] == _SMALL:
            self._uses[row] = 0
            queues.move(row, _MAIN, next(self._ticks))

    def remove(self, row: int) -> None:
        small, main = self._queues.sizes
        self._is_filling = False
        if self._queues.leave(row) == _SMALL:
            self._ghosts.add(self._name(row))
        self._ghosts.trim(_MAIN_SHARE * (small + main))

    def victim(self, worth: float = ALWAYS) -> int:
        queues, uses, rounds = self._queues, self._uses, 0
        while True:
            small, main = queues.sizes
            first = _MAIN if main > _MAIN_SHARE * (small + main) else _SMALL
            queue, row = first, self._first_evictable(first)
            if row == NONE:
                queue = 1 - first
                row = self._first_evictable(queue)
            if row == NONE or rounds == _MOST_ROUNDS:
                return row
            rounds += 1
            if queue == _SMALL and uses[row] >= _USES_TO_STAY:
                self._settle(row)
            elif queue == _MAIN and uses[row]:
                uses[row] -= 1
                queues.move(row, _MAIN, next(self._ticks))
            else:
                return row

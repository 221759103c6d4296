"""S3-FIFO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.ghosts import Ghosts
from kvtier.core.policies.queued import Queued
from kvtier.core.residency import NONE

_SMALL, _MAIN = 0, 1
_SMALL_SHARE: Final = 10
_MOST_USES: Final = 3
_USES_TO_STAY: Final = 2
#: So many blocks are given another round for one victim, which takes some milliseconds.
_MOST_ROUNDS: Final = 10_000


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
        self._chosen = NONE

    def insert(self, row: int) -> None:
        self._use_none(row)
        if self._is_filling:
            self._enter(row, _MAIN)
            self._fill_small()
        else:
            self._enter(row, _MAIN if self._ghosts.discard(self._name(row)) else _SMALL)

    def _fill_small(self) -> None:
        small, main = self._queues.sizes
        if main > _main_limit(small + main):
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
        if row == self._chosen:
            self._chosen = NONE
        if self._queues.leave(row) == _SMALL:
            self._ghosts.add(self._name(row))
        self._ghosts.trim(_main_limit(small + main))

    def victim(self, worth: float = ALWAYS) -> int:
        chosen = self._chosen
        if chosen != NONE and not self._stays(chosen) and self._is_evictable(chosen):
            return chosen
        small, main = self._queues.sizes
        first = _MAIN if main > _main_limit(small + main) else _SMALL
        row = self._coldest_to_go(first)
        self._chosen = row if row != NONE else self._coldest_to_go(1 - first)
        return self._chosen

    def _coldest_to_go(self, queue: int) -> int:
        for _ in range(_MOST_ROUNDS):
            row = self._first_evictable(queue)
            if row == NONE or not self._stays(row):
                return row
            if queue == _SMALL:
                self._settle(row)
            else:
                self._uses[row] -= 1
                self._queues.move(row, _MAIN, next(self._ticks))
        return self._first_evictable(queue)

    def _stays(self, row: int) -> bool:
        """Whether a block of the line is given another round when its turn comes."""
        queues = self._queues
        is_small = queues.queue_of[row + queues.count] == _SMALL
        return self._uses[row] >= (_USES_TO_STAY if is_small else 1)


def _main_limit(blocks: int) -> int:
    """How large the main queue may be."""
    return blocks - blocks // _SMALL_SHARE

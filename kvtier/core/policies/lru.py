"""Least recently used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.queued import Queued

_ALL: Final = 0


class Lru(Queued):
    """Evicts the candidate that was touched longest ago (Mattson et al., IBM Systems Journal 1970).

    One queue, in the order of the last touch.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context, 1)

    def insert(self, row: int) -> None:
        self._enter(row, _ALL)

    def insert_cold(self, row: int) -> None:
        self._enter_cold(row, _ALL)

    def touch(self, rows: Sequence[int]) -> None:
        move, ticks = self._queues.move, self._ticks
        for row in reversed(rows):
            move(row, _ALL, next(ticks))

    def keep(self, rows: Sequence[int]) -> None:
        self.touch(rows)

    def remove(self, row: int) -> None:
        self._queues.leave(row)

    def victim(self, worth: float = ALWAYS) -> int:
        return self._first_evictable(_ALL)

    def rank(self, row: int) -> int:
        return self._queues.order[row + 1]

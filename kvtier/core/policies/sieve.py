"""SIEVE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.queued import Queued
from kvtier.core.residency import NONE

_ALL: Final = 0
#: So many blocks are passed over for one victim, which takes some milliseconds.
_MOST_ROUNDS: Final = 10_000


class Sieve(Queued):
    """Evicts what was not used since the hand last passed it (Zhang et al., NSDI 2024).

    The hand goes from the oldest block to the youngest, and again; blocks keep their places. One
    that could not go when the hand came is the next to be looked at when it may.
    """

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context, 1)
        self._is_used = bytearray()
        self._hand = NONE

    def insert(self, row: int) -> None:
        self._use_none(row)
        self._enter(row, _ALL)

    def insert_cold(self, row: int) -> None:
        """The hand comes to it next."""
        self._use_none(row)
        self._enter_cold(row, _ALL)
        if self._hand != NONE:
            order = self._queues.order
            order[row + 1] = order[self._hand + 1]

    def _use_none(self, row: int) -> None:
        if row >= len(self._is_used):
            self._is_used.extend(bytes(row + 1 - len(self._is_used)))
        self._is_used[row] = False

    def touch(self, rows: Sequence[int]) -> None:
        self.keep(rows)
        is_used = self._is_used
        for row in rows:
            is_used[row] = True

    def release(self, row: int) -> None:
        queues, hand = self._queues, self._hand
        if queues.is_in_line(row) or not self._is_evictable(row):
            return
        order = queues.order
        is_young = hand == NONE or order[row + 1] > order[hand + 1]
        if is_young and (hand == NONE or queues.has_place_near_hot_end(row)):
            queues.line_up(row)
        else:
            queues.line_up_before(row, hand)
            self._hand = row

    def remove(self, row: int) -> None:
        if self._hand == row:
            self._hand = self._queues.hotter(row, _ALL)
        self._queues.leave(row)

    def victim(self, worth: float = ALWAYS) -> int:
        queues, is_used, row = self._queues, self._is_used, self._hand
        rounds = 0
        while True:
            if row == NONE and (row := queues.coldest(_ALL)) == NONE:
                break
            following = queues.hotter(row, _ALL)
            if not self._is_evictable(row):
                queues.park(row)
            elif not is_used[row] or rounds == _MOST_ROUNDS:
                break
            else:
                is_used[row] = False
                rounds += 1
            row = following
        self._hand = row
        return row

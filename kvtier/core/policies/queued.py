"""What policies that keep queues have in common."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.ghosts import name_of
from kvtier.core.policies.queues import Queues


class Queued:
    """Admits everything; candidates, which are the ends of prefixes, stand in line.

    A block whose turn comes while it may not go leaves the line; `release` brings it back to where
    it belongs. A block that has others behind it never was in line, and is older than they are: so
    it is the next whose turn comes when they are gone.
    """

    def __init__(self, blocks: Blocks, context: Context, queues: int) -> None:
        self._residency = blocks.residency
        self._is_evictable = blocks.is_evictable
        self._ticks = context.ticks
        self._stamp = array("Q")
        self._queues = Queues(queues)

    def ask(self, keys: BlockKeys) -> None:
        pass

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        return ALWAYS

    def release(self, row: int) -> None:
        if not self._queues.is_in_line(row) and self._is_evictable(row):
            self._queues.line_up(row)

    def keep(self, rows: Sequence[int]) -> None:
        """They are as young as what continues them, and not used more often for it."""
        stamps, ticks = self._stamp, self._ticks
        for row in reversed(rows):
            stamps[row] = next(ticks)

    def coldest(self, count: int) -> list[int]:
        """Of each queue's line the first, as if no block were given another round."""
        rows: list[int] = []
        for queue in range(self._queues.count):
            rows += islice(self._queues.line(queue), count - len(rows))
        return rows

    def rank(self, row: int) -> int:
        return self._stamp[row]

    def _enter(self, row: int, queue: int) -> None:
        if row >= len(self._stamp):
            self._stamp.extend([0] * (row + 1 - len(self._stamp)))
        self._stamp[row] = order = next(self._ticks)
        self._queues.enter(row, queue, order)

    def _enter_cold(self, row: int, queue: int) -> None:
        """As if it had come before all that are in line there."""
        self._enter(row, queue)
        self._queues.chill(row, self._stamp[row])

    def _name(self, row: int) -> bytes:
        return name_of(*self._residency.describe(row))

    def _first_evictable(self, queue: int) -> int:
        """The coldest of a queue that may go, or -1; those that may not leave the line."""
        queues, is_evictable = self._queues, self._is_evictable
        while (row := queues.coldest(queue)) >= 0 and not is_evictable(row):
            queues.park(row)
        return row

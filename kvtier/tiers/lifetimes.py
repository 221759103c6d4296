"""How long the blocks of a size class live."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvtier.core.ages import UNKNOWN, Ages
from kvtier.core.residency import NONE

_GROWTH_ROWS = 64


class Lifetimes:
    """When each block was stored, by row; with a time to live, whether that is over.

    Times are whole seconds of `Ages`, rounded down, so that a block may end up to a second early
    and never late.
    """

    def __init__(self, ages: Ages, ttl_seconds: float | None = None) -> None:
        self.ttl_seconds = ttl_seconds
        self._ages = ages
        self._stored_at = array("i")

    def begin(self, row: int, stored_at: int | None = None) -> None:
        """A block was stored: now, or at that time."""
        while row >= len(self._stored_at):
            self._stored_at.extend([UNKNOWN] * _GROWTH_ROWS)
        self._stored_at[row] = int(self._ages.now()) if stored_at is None else stored_at

    def stored_at(self, row: int) -> int:
        return self._stored_at[row]

    def age(self, row: int) -> float:
        """Seconds; infinite if it is not known."""
        stored_at = self._stored_at[row]
        return math.inf if stored_at == UNKNOWN else max(0.0, self._ages.now() - stored_at)

    def ages_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The ages of rows that have had a block."""
        ages: npt.NDArray[np.float64] = np.maximum(0.0, self._ages.now() - self.stored_at_of(rows))
        return ages

    def stored_at_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Of many rows; minus infinity where it is not known."""
        stored_at = np.frombuffer(self._stored_at, np.int32)[rows].astype(np.float64)
        stored_at[stored_at == UNKNOWN] = -np.inf
        return stored_at

    def unix_seconds(self, stored_at: int) -> int:
        """For what outlives the agent."""
        return self._ages.to_unix(stored_at)

    def is_over(self, row: int) -> bool:
        ttl = self.ttl_seconds
        return ttl is not None and self._stored_at[row] <= self._ages.now() - ttl

    def alive(self, rows: list[int]) -> list[int]:
        """-1 where a block's time is over."""
        if self.ttl_seconds is None:
            return rows
        last, stored_at = self._ages.now() - self.ttl_seconds, self._stored_at
        return [row if row != NONE and stored_at[row] > last else NONE for row in rows]

    def over(self, start: int, stop: int) -> Sequence[int]:
        """Rows of a range whose time is over, those that are not in use among them."""
        if self.ttl_seconds is None:
            return []
        column = np.frombuffer(self._stored_at, np.int32)[start:stop]
        rows: list[int] = np.flatnonzero(column <= self._ages.now() - self.ttl_seconds).tolist()
        return [start + row for row in rows]

    def remaining_seconds(self, stored_at: int) -> float | None:
        """Of a block that was stored then; None: for ever."""
        if self.ttl_seconds is None:
            return None
        return max(0.0, stored_at + self.ttl_seconds - self._ages.now())

    def stored_at_with(self, remaining_seconds: float) -> int:
        """When a block was stored, at the latest, that has so long to live."""
        ttl = self.ttl_seconds or 0.0
        return max(UNKNOWN, int(self._ages.now() - max(0.0, ttl - remaining_seconds)) - 1)

"""What was done in the last 24 hours."""

from __future__ import annotations

from array import array
from collections.abc import Callable

_HOURS = 24
_HOUR_SECONDS = 3600.0


class LastDay:
    """A sum of bytes over the last 24 hours, to the hour; `clock` gives seconds.

    A clock that goes back adds to the hour that was counted last.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hour = self._now()
        self._sums = array("Q", [0] * _HOURS)

    def _now(self) -> int:
        return int(self._clock() // _HOUR_SECONDS)

    def add(self, size_bytes: int) -> None:
        self._advance()
        self._sums[self._hour % _HOURS] += size_bytes

    @property
    def total_bytes(self) -> int:
        self._advance()
        return sum(self._sums)

    def _advance(self) -> None:
        now = self._now()
        for hour in range(max(self._hour + 1, now - _HOURS + 1), now + 1):
            self._sums[hour % _HOURS] = 0
        self._hour = max(self._hour, now)

"""When blocks were stored, in whole seconds since the agent's start, which may be negative."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Of a block of which nobody knows how old it is: older than all others.
UNKNOWN: Final = -(2**31)
_LONGEST_SECONDS: Final = 2**30
_SLACK_SECONDS: Final = 60


def _boot_seconds() -> float:
    """Goes on while the machine sleeps, whatever becomes of the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ages:
    """The time that lives are counted in. `clock` gives seconds and never runs backwards.

    `wall_clock` (Unix seconds) serves what outlives the agent, and only that: it may jump.
    """

    def __init__(
        self,
        clock: Callable[[], float] = _boot_seconds,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._start = clock()

    def now(self) -> float:
        return self._clock() - self._start

    def to_unix(self, stored_at: int) -> int:
        """For a record; 0 if it is not known."""
        if stored_at == UNKNOWN:
            return 0
        return max(0, int(self._wall_clock() - (self.now() - stored_at)))

    def from_unix(self, unix_seconds: int) -> int:
        """UNKNOWN also for times in the future: a clock was wrong, now or then."""
        age = self._wall_clock() - unix_seconds
        if not unix_seconds or not -_SLACK_SECONDS <= age < _LONGEST_SECONDS:
            return UNKNOWN
        return int(self.now() - max(0.0, age)) - 1  # rounded towards the older

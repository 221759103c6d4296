"""A clock that moves when it is told to."""

from __future__ import annotations


class ManualClock:
    """Seconds; call it to read it."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Time never runs backwards."""
        assert seconds >= 0
        self.seconds += seconds

"""How long something took, counted in buckets."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

#: Upper bounds in seconds; what takes longer than the last one is in a bucket of its own.
BOUNDS_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip


class Latency:
    """Observations since the agent's start. One takes a fifth of a microsecond."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: Latency) -> None:
        """Its observations count here too."""
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.seconds += other.seconds

"""What the suite has measured, shown at its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.vllm.repetitions import QUICK


def _typical(seconds: Sequence[float]) -> float:
    """Of five runs and more the middle one; of two the faster one, which is what the program takes
    when nothing else has the machine."""
    return min(seconds) if QUICK else statistics.median(seconds)


class Figures:
    """Rows of a table: a name, a value, and what was wanted."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = []

    def add(self, name: str, value: str, wanted: str = "") -> None:
        self._rows.append((name, value, wanted))

    def add_seconds(self, name: str, seconds: Sequence[float], wanted: str = "") -> float:
        """Adds the median with the extremes. Returns what ratios are made of."""
        median = statistics.median(seconds)
        self.add(name, f"{median:.3f} s ({min(seconds):.3f} to {max(seconds):.3f})", wanted)
        return _typical(seconds)

    def add_ratio(self, name: str, value: float, most: float) -> None:
        self.add(name, f"{value:.3f}", f"at most {most:g}")

    def lines(self) -> list[str]:
        """The table, for a human and for the log of a run."""
        width = max((len(name) for name, _, _ in self._rows), default=0)
        return [
            f"  {name:<{width}}  {value:<28} {wanted}".rstrip()
            for name, value, wanted in self._rows
        ]

"""How often the blocks of a size class were used."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_GROWTH_ROWS = 64


class Uses:
    """A count for each row, from when its block came to the tier. 8 bytes: it never overflows."""

    def __init__(self) -> None:
        self._counts = array("Q")

    def begin(self, row: int) -> None:
        """A block has come."""
        while row >= len(self._counts):
            self._counts.extend([0] * _GROWTH_ROWS)
        self._counts[row] = 0

    def add(self, rows: Iterable[int]) -> None:
        """Blocks were used."""
        counts = self._counts
        for row in rows:
            counts[row] += 1

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Counts of rows that have had a block."""
        counts: npt.NDArray[np.uint64] = np.frombuffer(self._counts, np.uint64)[rows]
        return counts

"""Which blocks of a size class must not be evicted, for however long."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kvtier.tiers.size_class import SizeClass


class PinnedRows:
    """How often each block of a size class is pinned.

    A lease keeps a slot, wherever its block goes; a pin keeps a block, and so the one reference
    that all its pins have together moves with it. `on_gone` is told of a pinned block that goes all
    the same: because it is damaged, or on request. Its row is still valid then.
    """

    def __init__(self, size_class: SizeClass) -> None:
        self._size_class = size_class
        self._counts = array("I")
        self.block_count = 0
        self.on_gone: Callable[[SizeClass, int], None] = lambda size_class, row: None

    @property
    def size_bytes(self) -> int:
        return self.block_count * self._size_class.slot_bytes

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._counts) and self._counts[row] > 0

    def __iter__(self) -> Iterator[int]:
        return (row for row, count in enumerate(self._counts) if count)

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each row is pinned."""
        pinned = np.zeros(len(rows), np.bool_)
        if not self.block_count:
            return pinned
        known = rows < len(self._counts)
        pinned[known] = np.frombuffer(self._counts, np.uint32)[rows[known]] > 0
        return pinned

    def add(self, rows: Sequence[int]) -> None:
        """One more pin on each."""
        counts = self._counts
        if rows and max(rows) >= len(counts):
            counts.extend([0] * (self._size_class.residency.row_count - len(counts)))
        for row in rows:
            if not counts[row]:
                self.block_count += 1
                self._size_class.acquire([row])
            counts[row] += 1

    def drop(self, rows: Sequence[int]) -> None:
        """One pin less on each; the beginning of a prefix comes first in `rows`."""
        size_class, counts, free = self._size_class, self._counts, array("q")
        for row in rows:
            counts[row] -= 1
            if not counts[row]:
                self.block_count -= 1
                free.append(size_class.residency.slot[row])
        size_class.release(free)

    def moving(self, row: int, source: int, target: int) -> None:
        """The block is about to be in another slot, which is in use; both keep some reference."""
        if row in self:
            references = self._size_class.table.references
            references[target] += 1
            self._unrefer(source)

    def forgetting(self, row: int) -> None:
        """The block is about to go; its slot is still its own, and is not put back here."""
        if row in self:
            self.on_gone(self._size_class, row)
            self._counts[row] = 0
            self.block_count -= 1
            self._unrefer(self._size_class.residency.slot[row])

    def _unrefer(self, slot: int) -> None:
        references = self._size_class.table.references
        references[slot] -= 1
        self._size_class.referenced_slots -= not references[slot]

    def check_integrity(self) -> None:
        """Raises AssertionError if books disagree."""
        table, slot = self._size_class.table, self._size_class.residency.slot
        rows = list(self)
        assert len(rows) == self.block_count, (len(rows), self.block_count)
        assert all(table.owner[slot[row]] == row for row in rows)
        assert all(table.references[slot[row]] for row in rows)

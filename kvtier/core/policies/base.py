"""The interface of eviction policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

#: Whether a row may go now: no child in the tier, no lease, hold or reservation on it.
Evictable = Callable[[int], bool]


class Policy(Protocol):
    """Ranks the blocks of one size class of one tier. Blocks are named by their rows.

    The residency decides what *may* go (`evictable`), the policy what goes first. A policy never
    scans all its rows: each call costs at most O(log n), amortised.
    """

    def insert(self, row: int) -> None:
        """A block was added. It becomes a candidate by `release`."""
        ...

    def touch(self, rows: Sequence[int]) -> None:
        """The blocks were used; the beginning of a prefix comes first in `rows`, and goes last."""
        ...

    def release(self, row: int) -> None:
        """The block may have become evictable."""
        ...

    def remove(self, row: int) -> None:
        """The block is gone; the row may be used again."""
        ...

    def victim(self) -> int:
        """The block to evict next, or -1. Changes no rank; the caller removes it."""
        ...

    def coldest(self, count: int) -> list[int]:
        """Up to so many candidates, those first that would go first."""
        ...

    def rank(self, row: int) -> int:
        """Comparable between the size classes of a tier: the lowest goes first."""
        ...

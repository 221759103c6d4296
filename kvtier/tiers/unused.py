"""Blocks that were brought to a tier ahead of use."""

from __future__ import annotations

from collections.abc import Iterable


class Unused:
    """Which rows of a size class were brought ahead of use and not used since; and what became of
    the others.

    A byte for each row: it grows by moving bytes, which at a million rows takes no time.
    """

    def __init__(self) -> None:
        self._is_unused = bytearray()
        #: Rows that wait to be used.
        self.count = 0
        #: Blocks, since the agent's start.
        self.brought_count = 0
        self.used_count = 0
        self.wasted_count = 0

    def __contains__(self, row: int) -> bool:
        return row < len(self._is_unused) and self._is_unused[row] != 0

    def bring(self, row: int) -> None:
        """A block has come, and nobody has used it."""
        missing = row + 1 - len(self._is_unused)
        if missing > 0:
            self._is_unused.extend(bytes(missing))
        self._is_unused[row] = True
        self.count += 1
        self.brought_count += 1

    def use(self, rows: Iterable[int]) -> list[int]:
        """Those of some rows that had not been used; now they have."""
        if not self.count:
            return []
        used = [row for row in rows if row in self]
        for row in used:
            self._is_unused[row] = False
        self.count -= len(used)
        self.used_count += len(used)
        return used

    def leave(self, row: int) -> None:
        """A block goes."""
        if row in self:
            self._is_unused[row] = False
            self.count -= 1
            self.wasted_count += 1

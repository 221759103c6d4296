"""Removing blocks whose time to live is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from kvtier.agent.turns import WRITE_SLICE
from kvtier.core.residency import NONE
from kvtier.core.rules import NamespaceRule
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

#: Rows whose times are compared at once, in some microseconds.
_SCAN_ROWS = 4096
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0
_SHARE = 16


class Expiry:
    """Frees the space of blocks that nobody finds any more: a miss is decided when they are looked
    for (`Lifetimes`), and their slots are worth something to others."""

    def __init__(self, tiers: Sequence[SlotTier], rules: Iterable[NamespaceRule]) -> None:
        self._tiers = tiers
        self._ttls = [rule.ttl_seconds for rule in rules if rule.ttl_seconds is not None]

    @property
    def interval_seconds(self) -> float:
        """Between two sweeps."""
        shortest = min(self._ttls, default=0.0)
        return min(max(shortest / _SHARE, _SHORTEST_SECONDS), _LONGEST_SECONDS)

    async def run(self) -> None:
        """Until it is cancelled; returns at once if nothing ever expires."""
        while self._ttls:
            await asyncio.sleep(self.interval_seconds)
            await self.sweep()

    async def sweep(self) -> None:
        """Removes what is over now, in slices."""
        for tier in self._tiers:
            for size_class in tier.classes:
                if size_class.lifetimes.ttl_seconds is not None:
                    await self._sweep(size_class)

    async def _sweep(self, size_class: SizeClass) -> None:
        residency, lifetimes = size_class.residency, size_class.lifetimes
        for start in range(0, residency.row_count, _SCAN_ROWS):
            over = lifetimes.over(start, start + _SCAN_ROWS)
            rows = [row for row in over if residency.slot[row] != NONE]
            for first in range(0, len(rows), WRITE_SLICE):
                for row in rows[first : first + WRITE_SLICE]:
                    # In between, a row may have been used again.
                    if residency.slot[row] != NONE and lifetimes.is_over(row):
                        size_class.expire(row)
                await asyncio.sleep(0)
            await asyncio.sleep(0)

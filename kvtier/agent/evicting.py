"""Removing blocks on request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.agent.turns import READ_SLICE, WRITE_SLICE, slices
from kvtier.core.block import BlockKeys
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass


@dataclass(slots=True)
class Evicted:
    """Blocks that are gone, and blocks that nobody finds any more but somebody still reads."""

    gone: int = 0
    deferred: int = 0

    def add(self, count: int, in_use: int) -> None:
        self.gone += count - in_use
        self.deferred += in_use


async def evict_all(
    size_classes: Sequence[SizeClass],
    *,
    dry_run: bool,
    forget: Callable[[SizeClass, int], None] = SizeClass.forget,
) -> Evicted:
    """Every block of some size classes."""
    evicted = Evicted()
    for size_class in size_classes:
        residency = size_class.residency
        async for part in slices(residency.row_count, WRITE_SLICE):
            for row in range(part.start, part.stop):
                if residency.slot[row] != NONE:
                    evicted.add(1, size_class.is_referenced(row))
                    if not dry_run:
                        forget(size_class, row)
    return evicted


async def evict_prefixes(
    size_class: SizeClass,
    keys: BlockKeys,
    *,
    dry_run: bool,
    forget: Callable[[SizeClass, int], None] = SizeClass.forget,
) -> Evicted:
    """The blocks of some keys and all that continues them."""
    if dry_run:
        return await _count_below(size_class, keys)
    evicted = Evicted()
    for block_hash in keys.hashes:
        while (row := size_class.residency.find(keys.lane, block_hash)) != NONE:
            evicted.add(
                *size_class.evict_below(row, WRITE_SLICE, lambda each: forget(size_class, each))
            )
            await asyncio.sleep(0)
    return evicted


async def _count_below(size_class: SizeClass, keys: BlockKeys) -> Evicted:
    evicted, seen = Evicted(), set[int]()
    pending = [row for row in size_class.find_many(keys.lane, keys.hashes) if row != NONE]
    while pending:
        row = pending.pop()
        if row not in seen and size_class.residency.slot[row] != NONE:
            seen.add(row)
            evicted.add(1, size_class.is_referenced(row))
            pending.extend(size_class.residency.children(row))
            if len(seen) % READ_SLICE == 0:
                await asyncio.sleep(0)
    return evicted

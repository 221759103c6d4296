"""Removing blocks on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import WRITE_SLICE, slices
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass

Forget = Callable[[SizeClass, int, Cause], None]


@dataclass(slots=True)
class Evicted:
    """Blocks that are gone, blocks that nobody finds any more but somebody still reads, and those
    that were left because they are pinned.

    A block counts in each tier that held it.
    """

    gone: int = 0
    deferred: int = 0
    pinned: int = 0

    def add(self, more: Evicted) -> None:
        self.gone += more.gone
        self.deferred += more.deferred
        self.pinned += more.pinned


async def evict(
    namespace: Namespace,
    keys: BlockKeys | None,
    tiers: frozenset[Tier],
    *,
    dry_run: bool = False,
    spare_pinned: bool = False,
    min_age_seconds: float = 0.0,
    forget: Forget = SizeClass.forget,
    cause: Cause = Cause.REMOVED,
) -> Evicted:
    """Removes the blocks of some keys and all that continues them, or every block.

    With `min_age_seconds`, of all these those that are so old.

    A block leaves all `tiers` in one turn of the loop, so that no copy on its way from one to the
    other finds itself still wanted. What continues it may be in another tier than it is. With
    `spare_pinned` a block that is pinned in one tier stays in all.
    """
    evicted = Evicted()
    if keys is None:
        blocks = _every(namespace, once=dry_run, spare_pinned=spare_pinned)
    else:
        blocks = below(namespace, keys)
    async for lane, block_hash in blocks:
        here = [
            (size_class, row)
            for tier, size_classes in namespace.places
            if tier in tiers
            and (row := (size_class := size_classes[lane.group]).residency.find(lane, block_hash))
            != NONE
            and (not min_age_seconds or size_class.lifetimes.age(row) >= min_age_seconds)
        ]
        if spare_pinned and is_pinned(namespace, lane, block_hash):
            evicted.pinned += len(here)
            continue
        for size_class, row in here:
            is_in_use = size_class.is_in_use(row)
            evicted.deferred += is_in_use
            evicted.gone += not is_in_use
            if not dry_run:
                forget(size_class, row, cause)
    return evicted


def is_pinned(namespace: Namespace, lane: Lane, block_hash: bytes) -> bool:
    """Whether it is, in some tier."""
    classes = (each[lane.group] for each in namespace.tiers.values())
    return any(
        each.pinned.block_count and each.residency.find(lane, block_hash) in each.pinned
        for each in classes
    )


async def _every(
    namespace: Namespace, *, once: bool, spare_pinned: bool
) -> AsyncIterator[tuple[Lane, bytes]]:
    """Each block, for each tier that has it, or once: if so asked, or if it is going to stay. Also
    one that comes from another tier meanwhile."""
    for tier in namespace.tiers:
        for size_class in namespace.classes_of(tier):
            residency = size_class.residency
            async for part in slices(residency.row_count, WRITE_SLICE):
                for row in range(part.start, part.stop):
                    if residency.slot[row] != NONE:
                        lane, block_hash = residency.describe(row)
                        stays = spare_pinned and is_pinned(namespace, lane, block_hash)
                        is_first = _first_tier(namespace, lane, block_hash) is tier
                        if is_first or not (once or stays):
                            yield lane, block_hash


def _first_tier(namespace: Namespace, lane: Lane, block_hash: bytes) -> Tier:
    return next(
        tier
        for tier, size_classes in namespace.tiers.items()
        if size_classes[lane.group].residency.find(lane, block_hash) != NONE
    )


async def below(namespace: Namespace, keys: BlockKeys) -> AsyncIterator[tuple[Lane, bytes]]:
    """Some keys, and whatever continues them in any tier; beginnings before their ends."""
    lane = keys.lane
    residencies = [each[lane.group].residency for each in namespace.tiers.values()]
    pending = list(reversed(keys.hashes))
    seen = set[bytes]()
    while pending:
        block_hash = pending.pop()
        if block_hash in seen:
            continue
        seen.add(block_hash)
        for residency in residencies:
            pending += residency.continuations(lane, block_hash)
        yield lane, block_hash
        if len(seen) % WRITE_SLICE == 0:
            await asyncio.sleep(0)

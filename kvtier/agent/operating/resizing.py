"""Tiers of another size, while they run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from kvtier import memory
from kvtier.agent.moving.demotion import Demotion
from kvtier.agent.operating.auto_sizing import AutoSizing
from kvtier.agent.placing.placement import Placement
from kvtier.agent.tiers.disk import Disk
from kvtier.core.block import Tier
from kvtier.core.capacity import (
    LEAST_DISK_PATH_BYTES,
    LEAST_HOST_BYTES,
    MOST_DISK_BYTES,
    MOST_HOST_BYTES,
)
from kvtier.errors import AgentUnavailableError, InvalidRequestError, NotFoundError
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)

#: A shrinking HOST waits so long in all for what it evicts to be written to slower tiers.
_WRITING_SECONDS = 60.0


class Resizing:
    """Changes capacities until the agent stops; the last change of a tier counts.

    Before a shrinking HOST evicts, blocks that slower tiers are to have are written to them, as
    many at a time as demotion may have in flight, and a flush that is under way ends first.
    """

    def __init__(
        self, host: Placement, disk: Disk | None = None, demotions: Sequence[Demotion] = ()
    ) -> None:
        self._host = host
        self._disk = disk
        self._demotions = demotions
        self._deadline = 0.0
        #: Who changes HOST's by itself.
        self.automatic: AutoSizing | None = None
        if demotions:
            host.shrinking.before_evicting = self._write

    def resize(self, tier: Tier, capacity_bytes: int) -> None:
        """Growing is at once; shrinking goes on in the background.

        Raises InvalidRequestError for what is no size of it, NotFoundError if it is not here,
        AgentUnavailableError if its extents cannot be told or given back now.
        """
        placement = self._placement_of(tier, capacity_bytes)
        before = placement.tier.space.capacity_bytes
        if tier is Tier.HOST:
            self._deadline = time.monotonic() + _WRITING_SECONDS
            _check_memory(capacity_bytes, placement.tier.space.allocated_bytes)
        placement.resize(capacity_bytes)
        log.info("%s: capacity %d MiB, was %d MiB", tier.name, capacity_bytes >> 20, before >> 20)

    def _placement_of(self, tier: Tier, capacity_bytes: int) -> Placement:
        if tier is Tier.HOST:
            _check_most(tier, capacity_bytes, MOST_HOST_BYTES)
            _check_least(tier, capacity_bytes, LEAST_HOST_BYTES, "")
            tables = self._host.tier.space.least_bytes
            _check_least(tier, capacity_bytes, tables, "; tables of its namespaces take half of it")
            return self._host
        if tier is Tier.GPU:
            raise InvalidRequestError(
                "tier: what a device has is set when the agent starts, in tiers.gpu.devices; HOST "
                "and DISK have a capacity to set"
            )
        if tier is not Tier.DISK:
            raise InvalidRequestError(f"tier: {tier.name} has no capacity to set; HOST or DISK has")
        if self._disk is None:
            raise NotFoundError("this agent has no DISK tier: set tiers.disk.paths")
        paths = len(self._disk.movers)
        each = f", {LEAST_DISK_PATH_BYTES >> 20} MiB for each path" if paths > 1 else ""
        _check_most(tier, capacity_bytes, MOST_DISK_BYTES)
        _check_least(tier, capacity_bytes, LEAST_DISK_PATH_BYTES * paths, each)
        _check_usable(self._disk, is_smaller=capacity_bytes < self._disk.tier.space.capacity_bytes)
        return self._disk.placement

    async def _write(self, host: SizeClass, rows: list[int]) -> None:
        for demotion in self._demotions:
            await demotion.flushed()
            left = self._deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await demotion.write(host, rows)
            except TimeoutError:
                pass  # it goes unwritten, as when stores come faster than the device writes


def _check_least(tier: Tier, capacity_bytes: int, least_bytes: int, why: str) -> None:
    if capacity_bytes < least_bytes:
        least_mib = -(-least_bytes >> 20)
        raise InvalidRequestError(
            f"capacity_bytes of {tier.name} is {capacity_bytes}; it must be at least "
            f"{least_mib} MiB{why}"
        )


def _check_most(tier: Tier, capacity_bytes: int, most_bytes: int) -> None:
    if capacity_bytes > most_bytes:
        raise InvalidRequestError(
            f"capacity_bytes of {tier.name} is {capacity_bytes}; it may be {most_bytes >> 40} TiB "
            "at most"
        )


def _check_usable(disk: Disk, *, is_smaller: bool) -> None:
    if not disk.is_recovered:
        raise AgentUnavailableError(
            "DISK is RECOVERING: its tables are still being read; resize it when it is ready"
        )
    bad = next((mover for mover in disk.movers if not mover.is_readable), None)
    if is_smaller and bad is not None:
        raise AgentUnavailableError(
            f"DISK is UNAVAILABLE: {bad.storage.path}: {bad.reason}; shrink it when it answers"
        )


def _check_memory(capacity_bytes: int, allocated_bytes: int) -> None:
    """As at the start, it is said and allowed."""
    available = memory.available_bytes()
    if capacity_bytes > allocated_bytes + available:
        log.warning(
            "HOST may have %d MiB now, and %d MiB of memory are available: it stops growing when "
            "memory_reserve is reached",
            capacity_bytes >> 20,
            available >> 20,
        )

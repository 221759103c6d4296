"""Writing blocks of HOST into slabs."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from kvtier.agent.placement import Placement
from kvtier.agent.storage_mover import Kind, StorageMover
from kvtier.agent.writer import Taken, Writer, spawn
from kvtier.core.block import BlockStatus, Tier
from kvtier.core.residency import NONE
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Filling, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)


_Target = tuple[Taken, int]


class DiskWriter(Writer):
    """Writes into slots of slabs; syncs what was written.

    `prepare` is awaited before a namespace's first block is written.
    """

    tier = Tier.DISK

    def __init__(
        self,
        disk: DiskTier,
        placement: Placement,
        movers: Sequence[StorageMover[Volume]],
        prepare: Callable[[int], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._disk = disk
        self._placement = placement
        self._movers = movers
        self._prepare = prepare
        self._syncing: set[asyncio.Task[None]] = set()

    @property
    def is_writable(self) -> bool:
        return all(mover.is_writable for mover in self._movers)

    def require_writable(self) -> None:
        for mover in self._movers:
            if not mover.is_writable:
                raise OSError(f"{mover.storage.path}: {mover.reason}")

    @property
    def written_bytes(self) -> int:
        return sum(mover.written_bytes for mover in self._movers)

    def _class(self, host: SizeClass) -> SizeClass:
        """The size class of DISK for the blocks of one of HOST."""
        return self._disk.size_class(host.table.namespace_id, host.slot_bytes)

    def has(self, host: SizeClass, row: int) -> bool:
        return self._class(host).find(*host.residency.describe(row)) != NONE

    async def _write(self, host: SizeClass, blocks: list[Taken]) -> None:
        disk, left = self._class(host), blocks
        try:
            await self._prepare(host.table.namespace_id)
            await self._placement.make_room(disk, len(left))
            by_slab: defaultdict[Slab, list[_Target]] = defaultdict(list)
            for target in disk.take(len(left)) if self.is_writable else []:
                by_slab[slab_of(disk, target)].append((left.pop(0), target))
            writes = [self._store(host, slab, targets) for slab, targets in by_slab.items()]
            await asyncio.gather(*writes, return_exceptions=True)
        except OSError as error:
            log.warning("DISK: %s", error.strerror or error)
        finally:
            self.failed_count += len(left)
            self._end(left)

    async def _store(self, host: SizeClass, slab: Slab, targets: list[_Target]) -> None:
        disk = self._class(host)
        tenancy = self._disk.slabs.tenancy(disk)
        fillings = [
            Filling(
                target - slab.base,
                disk.table.generations[target],
                cell_of(host.table, block.slot),
                tenancy.block_bytes[block.key.lane.group],
                block.key,
                host.lifetimes.unix_seconds(block.stored_at),
            )
            for block, target in targets
        ]
        try:
            await self._movers[slab.stripe].run(
                slab.store,
                tenancy.identity,
                fillings,
                size_bytes=len(fillings) * slab.slot_bytes,
                kind=Kind.WRITE,
                on_end=lambda stored: self._landed(host, slab, targets, stored),
            )
        except OSError:
            self._give_up(block for block, _ in targets)
            raise

    def _landed(
        self,
        host: SizeClass,
        slab: Slab,
        targets: list[_Target],
        stored: bool | None,
    ) -> None:
        disk = self._class(host)
        unwanted = []
        for block, target in targets:
            if not stored:
                self.failed_count += 1
                continue
            if not block.is_current:
                unwanted.append(target)
            elif disk.commit(*block.key, target, stored_at=block.stored_at) is BlockStatus.OK:
                disk.counters.stored += 1
        if unwanted:
            spawn(self._erase(disk, slab, unwanted), self._erasing)
        disk.release([target for _, target in targets if target not in unwanted])
        self._end([block for block, _ in targets])

    async def _erase(self, disk: SizeClass, slab: Slab, targets: list[int]) -> None:
        try:
            await self._movers[slab.stripe].run(
                slab.erase,
                [target - slab.base for target in targets],
                on_end=lambda _: disk.release(targets),
            )
        except OSError as error:
            self.unerased_count += len(targets)
            log.error("%s: evicted blocks cannot be erased: %s", slab.data_path, error)

    async def sync(self) -> None:
        for size_class, slab in self._disk.all_slabs():
            if slab.unsynced:
                spawn(self._sync(size_class, slab), self._syncing)
        # Those of others too: what they began to sync is not durable yet. They outlive this call.
        results = await asyncio.gather(*map(asyncio.shield, self._syncing), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _sync(self, size_class: SizeClass, slab: Slab) -> None:
        at_stake, slab.unsynced = slab.unsynced, set()
        try:
            await self._movers[slab.stripe].run(slab.sync)
        except OSError:
            self._lose(size_class, slab, at_stake)
            raise

    def _lose(self, size_class: SizeClass, slab: Slab, slots: Iterable[int]) -> None:
        owner, lost = size_class.table.owner, 0
        for slot in slots:
            row = owner[slab.base + slot]
            if row != NONE:
                size_class.forget(row)
                lost += 1
        log.error("%s: a sync failed; %d blocks count as lost", slab.data_path, lost)

    async def close(self) -> None:
        for task in self._syncing:
            task.cancel()
        await asyncio.gather(super().close(), *self._syncing, return_exceptions=True)

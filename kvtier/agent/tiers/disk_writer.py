"""Writing blocks of HOST into slabs."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from kvtier.agent.moving.storage_mover import Kind, StorageMover
from kvtier.agent.moving.writer import Taken, Writer, spawn
from kvtier.agent.placing.placement import Placement
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.policies.base import NEVER
from kvtier.core.residency import NONE
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Filling, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)


_Target = tuple[Taken, int]
_Name = tuple[Lane, bytes]
OnRefused = Callable[[SizeClass, Lane, Sequence[bytes]], object]


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
        #: Is told of blocks that the policy did not admit.
        self.on_refused: OnRefused = lambda disk, lane, hashes: None
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

    def would_take(self, host: SizeClass, keys: BlockKeys, index: int) -> bool:
        disk = self._class(host)
        worth = disk.worth(keys, index)
        if worth <= NEVER:
            return False
        has_room = disk.free_slots > 0 or self._disk.can_grow(disk)
        return has_room or disk.policy.victim(worth) != NONE

    def has(self, host: SizeClass, row: int) -> bool:
        return self._class(host).find(*host.residency.describe(row)) != NONE

    async def _write(self, host: SizeClass, blocks: list[Taken]) -> None:
        disk, left = self._class(host), blocks
        try:
            await self._prepare(host.table.namespace_id)
            left, worths = self._admit(disk, left)
            if left:
                await self._placement.make_room(disk, len(left), max(worths.values()))
            by_slab: defaultdict[Slab, list[_Target]] = defaultdict(list)
            targets, left = self._take(disk, left, worths) if self.is_writable else ([], left)
            for block, target in targets:
                by_slab[slab_of(disk, target)].append((block, target))
            writes = [self._store(host, slab, targets) for slab, targets in by_slab.items()]
            await asyncio.gather(*writes, return_exceptions=True)
        except OSError as error:
            log.warning("DISK: %s", error.strerror or error)
        finally:
            self.failed_count += len(left)
            self._end(left)

    def _admit(
        self, disk: SizeClass, blocks: list[Taken]
    ) -> tuple[list[Taken], dict[_Name, float]]:
        """Those that DISK may take, beginnings first, and what each is worth; what
        continues another one is worth as much. The others have ended."""
        admitted: list[Taken] = []
        refused: dict[_Name, Taken] = {}
        worths: dict[_Name, float] = {}
        for block in sorted(blocks, key=lambda each: each.key.position):
            lane, block_hash, parent_hash, _ = block.key
            parent = disk.residency.find(lane, parent_hash) if parent_hash else NONE
            worth = disk.policy.worth(lane, block_hash, parent)
            if worth <= NEVER or (lane, parent_hash) in refused:
                refused[lane, block_hash] = block
                continue
            worths[lane, block_hash] = worths.get((lane, parent_hash), worth)
            admitted.append(block)
        self._turn_away(disk, list(refused.values()))
        return admitted, worths

    def _take(
        self, disk: SizeClass, blocks: list[Taken], worths: dict[_Name, float]
    ) -> tuple[list[_Target], list[Taken]]:
        """Slots for the leading blocks, and those for which there is no room. What is worth less
        than all that is there has ended."""
        targets: list[_Target] = []
        left: list[Taken] = []
        refused: dict[_Name, Taken] = {}
        for block in blocks:
            lane, block_hash, parent_hash, _ = block.key
            is_refused = (lane, parent_hash) in refused
            slots = [] if left or is_refused else disk.take(1, worths[lane, block_hash])
            if slots:
                targets.append((block, slots[0]))
            elif is_refused or (not left and disk.policy.victim() != NONE):
                refused[lane, block_hash] = block
            else:
                left.append(block)
        self._turn_away(disk, list(refused.values()))
        return targets, left

    def _turn_away(self, disk: SizeClass, refused: list[Taken]) -> None:
        disk.counters.unadmitted += len(refused)
        disk.counters.causes[Cause.ADMISSION] += len(refused)
        if refused:
            self._refuse(refused)
            for block in refused:
                self.on_refused(disk, block.key.lane, [block.key.block_hash])

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
                self._note_written(block)
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
                size_class.forget(row, Cause.LOST)
                lost += 1
        log.error("%s: a sync failed; %d blocks count as lost", slab.data_path, lost)

    async def close(self) -> None:
        for task in self._syncing:
            task.cancel()
        await asyncio.gather(super().close(), *self._syncing, return_exceptions=True)

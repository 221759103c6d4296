"""Writing blocks of HOST into slabs."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.agent.placement import Placement
from kvtier.agent.volume_mover import Kind, VolumeMover
from kvtier.core.block import BlockKey, BlockStatus
from kvtier.core.residency import NONE
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Filling, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block of HOST that is to be written. It may move to another slot, or go, before that."""

    host: SizeClass
    row: int
    block_hash: bytes

    @property
    def is_current(self) -> bool:
        return self.host.residency.describe(self.row)[1] is self.block_hash


@dataclass(frozen=True, slots=True)
class _Taken:
    """A block whose slot in HOST is in use for it: key, slot and generation of that time."""

    row: int
    key: BlockKey
    slot: int
    generation: int


_Target = tuple[_Taken, int]


class DiskWriter:
    """Writes batches of blocks of one size class; syncs what was written.

    The slots in HOST stay in use until a write has really ended. `prepare` is awaited before a
    namespace's first block is written; `on_end` is told when a batch leaves room for another.
    """

    def __init__(
        self,
        disk: DiskTier,
        placement: Placement,
        movers: Sequence[VolumeMover],
        prepare: Callable[[int], Awaitable[None]],
    ) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self._disk = disk
        self._placement = placement
        self._movers = movers
        self._prepare = prepare
        self._writing: set[tuple[SizeClass, int]] = set()
        #: Given up, and not ended yet.
        self._overdue: set[tuple[SizeClass, int]] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._erasing: set[asyncio.Task[None]] = set()
        self._syncing: set[asyncio.Task[None]] = set()
        self.in_flight_bytes = 0
        self.written_count = 0
        self.failed_count = 0
        #: Blocks that were evicted while they were written, and whose records are still there.
        self.unerased_count = 0

    @property
    def is_writable(self) -> bool:
        return all(mover.is_writable for mover in self._movers)

    def require_writable(self) -> None:
        """Raises OSError that names the volume and the reason."""
        for mover in self._movers:
            if not mover.is_writable:
                raise OSError(f"{mover.volume.path}: {mover.reason}")

    @property
    def written_bytes(self) -> int:
        return sum(mover.written_bytes for mover in self._movers)

    @property
    def has_overdue(self) -> bool:
        """Whether writes hang of which nobody knows how they will end."""
        return bool(self._overdue)

    def disk_class(self, host: SizeClass) -> SizeClass:
        """The size class of DISK for the blocks of one of HOST."""
        return self._disk.size_class(host.table.namespace_id, host.slot_bytes)

    def is_writing(self, host: SizeClass, row: int) -> bool:
        return (host, row) in self._writing

    @property
    def batches(self) -> set[asyncio.Task[None]]:
        """What is being written now."""
        return set(self._batches)

    def start(self, host: SizeClass, blocks: Sequence[Candidate]) -> None:
        """Begins to write blocks that are current and not being written."""
        slots = host.acquire([block.row for block in blocks])
        self._writing.update((host, block.row) for block in blocks)
        self.in_flight_bytes += len(blocks) * host.slot_bytes
        generations = host.table.generations
        taken = [
            _Taken(block.row, host.residency.key(block.row), slot, generations[slot])
            for block, slot in zip(blocks, slots, strict=True)
        ]
        _spawn(self._write(host, taken), self._batches)

    async def _write(self, host: SizeClass, left: list[_Taken]) -> None:
        disk = self.disk_class(host)
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
            self._end(host, left)

    async def _store(self, host: SizeClass, slab: Slab, targets: list[_Target]) -> None:
        disk = self.disk_class(host)
        tenancy = self._disk.slabs.tenancy(disk)
        fillings = [
            Filling(
                target - slab.base,
                disk.table.generations[target],
                cell_of(host.table, block.slot),
                tenancy.block_bytes[block.key.lane.group],
                block.key,
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
            blocks = {(host, block.row) for block, _ in targets}
            self._overdue |= blocks & self._writing
            raise

    def _landed(
        self,
        host: SizeClass,
        slab: Slab,
        targets: list[_Target],
        stored: bool | None,
    ) -> None:
        disk = self.disk_class(host)
        unwanted = []
        for block, target in targets:
            if not stored:
                self.failed_count += 1
                continue
            if not host.is_at(
                block.row, block.slot, block.generation
            ):  # evicted on request meanwhile
                unwanted.append(target)
            elif disk.commit(*block.key, target) is BlockStatus.OK:
                self.written_count += 1
                disk.counters.stored += 1
        if unwanted:
            _spawn(self._erase(disk, slab, unwanted), self._erasing)
        disk.release([target for _, target in targets if target not in unwanted])
        self._end(host, [block for block, _ in targets])

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

    def _end(self, host: SizeClass, blocks: Sequence[_Taken]) -> None:
        ended = [(host, block.row) for block in blocks]
        self._writing.difference_update(ended)
        self._overdue.difference_update(ended)
        host.release([block.slot for block in blocks])
        self.in_flight_bytes -= len(blocks) * host.slot_bytes
        self.on_end()

    async def settled(self) -> None:
        """Returns when what is being written now has been."""
        await asyncio.gather(*self._batches, return_exceptions=True)
        await asyncio.gather(*self._erasing, return_exceptions=True)

    async def sync(self) -> None:
        """Makes durable what was written. Raises OSError; what was at stake counts as lost."""
        for size_class, slab in self._disk.all_slabs():
            if slab.unsynced:
                _spawn(self._sync(size_class, slab), self._syncing)
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
        """Ends what is under way; what is in a thread's hands completes."""
        work = [*self._batches, *self._erasing, *self._syncing]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def _spawn(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)

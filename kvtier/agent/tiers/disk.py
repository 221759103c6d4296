"""DISK at work: its parts, put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kvtier.agent.moving.demotion import Demotion, WritePolicy
from kvtier.agent.moving.storage_mover import StorageMover
from kvtier.agent.moving.writer import spawn
from kvtier.agent.placing.evicting import Forget
from kvtier.agent.placing.placement import Placement
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.tiers.disk_reader import DiskReader
from kvtier.agent.tiers.disk_writer import DiskWriter
from kvtier.agent.tiers.recovery import Recovery
from kvtier.agent.turns import WRITE_SLICE
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.core.residency import NONE
from kvtier.memory import ByteArray
from kvtier.tiers.disk.io import ALIGNMENT_BYTES, BlockIO
from kvtier.tiers.disk.manifest import Known, Manifest
from kvtier.tiers.disk.slab import Fetched, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCRUB_BYTES = 8 << 20
_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class DiskSettings:
    """Sizes in bytes, times in seconds; `capacity_bytes` is for all paths together."""

    paths: Sequence[Path]
    capacity_bytes: int
    policy: str = "lru"
    admission: str = "always"
    write_policy: WritePolicy = WritePolicy.THROUGH
    after_hits: int = 2
    min_free_bytes: int = 0
    depth: int = 2
    timeout_seconds: float = 10.0
    max_in_flight_bytes: int = 256 << 20
    scrub_bytes_per_second: int = 100 << 20
    probe_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """How far a scrub is, in blocks."""

    scanned_count: int
    corrupt_count: int
    scanned_bytes: int
    total_count: int
    is_done: bool = False


class Disk:
    """Volumes and their threads, demotion, promotion, recovery, and what an operator asks for."""

    def __init__(
        self,
        settings: DiskSettings,
        host: HostTier,
        io: BlockIO | None = None,
    ) -> None:
        io = io or BlockIO()
        share = settings.capacity_bytes // len(settings.paths)
        self.settings = settings
        volumes: list[Volume] = []
        try:
            for number, path in enumerate(settings.paths):
                volume = Volume(
                    io, path, share, stripe=number, min_free_bytes=settings.min_free_bytes
                )
                volumes.append(volume)
        except BaseException:
            for volume in volumes:
                volume.close()
            raise
        self.tier = DiskTier(
            volumes, policy=settings.policy, admission=settings.admission, ages=host.ages
        )
        self.movers = [
            StorageMover(
                volume,
                name=f"disk-{volume.stripe}",
                depth=settings.depth,
                timeout_seconds=settings.timeout_seconds,
                probe_seconds=settings.probe_seconds,
            )
            for volume in volumes
        ]
        self.placement = Placement(
            self.tier,
            self._run,
            spare_bytes=lambda: 1 << 62,
            step_bytes=1 << 62,
            may_evict=lambda: all(mover.is_writable for mover in self.movers),
        )
        self.placement.shrinking.is_reachable = lambda extent: (
            self.movers[extent.stripe].is_readable
        )
        self.placement.shrinking.make_way = self._make_way
        self.reader = DiskReader(self.tier, self.movers)
        self.reader.on_damaged = self.set_aside
        self.writer = DiskWriter(self.tier, self.placement, self.movers, self._make_known)
        self.demotion = Demotion(
            host,
            self.writer,
            policy=settings.write_policy,
            after_hits=settings.after_hits,
            max_in_flight_bytes=settings.max_in_flight_bytes,
        )
        for mover in self.movers:
            mover.on_turn = self._volume_turned
        self._manifest = Manifest(settings.paths, min(each.reserve_bytes for each in volumes))
        self._known: dict[int, Known] = {}
        self._manifest_lock = asyncio.Lock()
        self._namespaces: dict[int, Namespace] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovery: Recovery | None = None
        self._recovered = asyncio.Event()

    def _volume_turned(self) -> None:
        if all(mover.is_writable for mover in self.movers):
            self.placement.discard_again()
        self.placement.shrinking.wake()
        self.demotion.tier_turned()

    async def _make_way(self) -> None:
        """Deletes what was set aside, where there is no room for it."""
        for mover in self.movers:
            if mover.storage.must_make_way:
                try:
                    await mover.run(mover.storage.make_way)
                except OSError as error:
                    log.error("%s: %s", mover.storage.path, error)

    async def _run(self, extent: Extent, call: Callable[..., T], *args: Any) -> T:
        """Returns or raises when the call has really ended, however late: until then the slots and
        files that it works on are not to be used for anything else."""
        ended = asyncio.Event()
        try:
            return await self.movers[extent.stripe].run(
                call, *args, on_end=lambda result: ended.set()
            )
        except OSError:
            await ended.wait()
            raise

    # Start and stop.

    async def restore_namespaces(self, namespaces: Namespaces) -> None:
        """Those that an earlier run of the agent knew; before workers come."""
        namespaces.on_added.append(self.register)
        namespaces.on_dropped.append(self.forget)
        for known in await self._manifest.load():
            namespace = namespaces.restore(known.spec, known.generation_id)
            self._known[namespace.namespace_id] = known

    async def recover(self, namespaces: Namespaces) -> None:
        """Finds what is on the volumes; demotion begins at its end."""
        self._recovery = Recovery(self.tier, self.movers, namespaces)
        await self._recovery.run()
        self.reader.last_recovered = self._recovery.last_sequence
        self._recovered.set()
        self.placement.shed_excess()
        self.demotion.open()

    @property
    def damaged_record_count(self) -> int:
        """Records of tables that could not be used at the start."""
        return self._recovery.damaged_count if self._recovery is not None else 0

    @property
    def is_recovered(self) -> bool:
        return self._recovered.is_set()

    async def recovered(self) -> None:
        """Returns when all is read: before that, what is removed could come back."""
        await self._recovered.wait()

    async def stop(self) -> None:
        """Flushes what can be flushed, and closes everything."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self.settings.timeout_seconds):
                await self.demotion.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.demotion.close()
        await self.writer.close()
        await self.placement.close()
        hung = [mover.storage.stripe for mover in self.movers if not await mover.close()]
        self.tier.slabs.close(hung)

    # Namespaces.

    def register(self, namespace: Namespace) -> None:
        """A namespace is known to the agent; DISK learns of it when its first block comes."""
        self.tier.slabs.register(namespace.namespace_id, namespace.spec, namespace.generation_id)
        self._namespaces[namespace.namespace_id] = namespace

    def forget(self, namespace: Namespace) -> None:
        """It made way for another, and has no block here."""
        del self._namespaces[namespace.namespace_id]

    async def _make_known(self, namespace_id: int) -> None:
        """Writes a namespace down, before its first block is. Raises OSError."""
        namespace = self._namespaces.get(namespace_id)
        if namespace is None or namespace.is_renewing:
            raise OSError("the namespace is gone, or is being invalidated")
        await self._save(namespace)

    async def _save(self, namespace: Namespace) -> None:
        namespace_id = namespace.namespace_id
        known = Known(namespace.spec, namespace.generation_id)
        if self._known.get(namespace_id) == known:
            return
        async with self._manifest_lock:
            if self._known.get(namespace_id) != known:
                self._known = {
                    each: value for each, value in self._known.items() if each in self._namespaces
                }
                await self._manifest.save([*{**self._known, namespace_id: known}.values()])
                self._known[namespace_id] = known

    async def renew(self, namespace: Namespace) -> None:
        """A namespace has a new generation; returns when that is on the devices."""
        self.register(namespace)
        await self._save(namespace)

    # Removing.

    @asynccontextmanager
    async def erasing(self, namespace: Namespace) -> AsyncIterator[Forget]:
        """Blocks of a namespace that are forgotten with what this gives do not come back.

        At its end their records are empty, and those of blocks that made way for others before or
        that were on their way meanwhile. Raises OSError if that could not be.
        """
        slots = {each: each.take_used_before() for each in namespace.classes_of(Tier.DISK)}

        def forget(size_class: SizeClass, row: int, cause: Cause) -> None:
            if size_class in slots:  # the slot is not used again before its record is empty
                slots[size_class].extend(size_class.acquire([row]))
            size_class.forget(row, cause)

        try:
            yield forget
        finally:
            await self._erase_all(slots)
            await self._settled()
            await self._erase_all({each: each.take_used_before() for each in slots})

    async def _settled(self) -> None:
        """Returns when nothing that was on its way to another slot can land there any more."""
        unerased = self.writer.unerased_count
        await self.writer.settled()
        await self.placement.settled(self.settings.timeout_seconds)
        if self.writer.unerased_count > unerased or self.writer.has_overdue:
            raise OSError("what was being written cannot be erased")

    async def _erase_all(self, slots: Mapping[SizeClass, Sequence[int]]) -> None:
        """Empties the records of slots that are in use by the caller; releases them, also if the
        caller waits no longer.

        Raises OSError when all has been tried.
        """
        by_slab: defaultdict[tuple[SizeClass, Slab], list[int]] = defaultdict(list)
        for size_class, each in slots.items():
            for slot in each:
                by_slab[size_class, slab_of(size_class, slot)].append(slot)
        erasing = [spawn(self._erase(*place, each), self._tasks) for place, each in by_slab.items()]
        if erasing:
            await asyncio.wait(erasing)
        for error in [each.exception() for each in erasing]:
            if error is not None:
                raise error

    async def _erase(self, size_class: SizeClass, slab: Slab, slots: list[int]) -> None:
        await self.movers[slab.stripe].run(
            slab.erase,
            [slot - slab.base for slot in slots],
            on_end=lambda is_empty: self._erased(size_class, slots, is_empty=bool(is_empty)),
        )

    def _erased(self, size_class: SizeClass, slots: list[int], *, is_empty: bool) -> None:
        """Slots without a generation have no record; others are erased by the next eviction."""
        if is_empty:
            for slot in slots:
                size_class.table.generations[slot] = 0
        size_class.release(slots)

    def set_aside(self, size_class: SizeClass, slab: Slab) -> None:
        """Gives up a slab with too much damage, with all blocks in it."""
        if slab.is_set_aside:
            return
        slab.is_set_aside = True
        log.error(
            "%s: %d slots are damaged; it is set aside in %s, with what else is in it",
            slab.data_path,
            len(slab.damaged),
            slab.volume.path,
        )
        spawn(self._empty(size_class, slab), self._tasks)

    async def _empty(self, size_class: SizeClass, slab: Slab) -> None:
        if not slab.retiring:
            size_class.withdraw(slab)
        for number, slot in enumerate(size_class.live_slots(slab), 1):
            row = size_class.table.owner[slot]
            if row != NONE:
                size_class.forget(row, Cause.LOST)
            if number % WRITE_SLICE == 0:
                await asyncio.sleep(0)

    # Scrubbing.

    async def scrub(self, rate_bytes: int) -> AsyncIterator[ScrubProgress]:
        """Reads and verifies every block, so many bytes a second (0: as configured)."""
        rate = rate_bytes or self.settings.scrub_bytes_per_second
        total = sum(len(size_class.residency) for size_class in self.tier.classes)
        scanned = corrupt = size_bytes = 0
        started = reported = time.monotonic()
        for size_class, slab in self.tier.all_slabs():
            step = max(1, _SCRUB_BYTES // slab.slot_bytes)
            scratch = _scratch(step, slab.slot_bytes)
            live = size_class.live_slots(slab)
            for first in range(0, len(live), step):
                if slab not in size_class.extents:
                    break  # it is gone, and its slots are others' now
                count, bad = await self._verify(
                    size_class, slab, live[first : first + step], scratch
                )
                scanned, corrupt = scanned + count, corrupt + bad
                size_bytes += count * slab.slot_bytes
                ahead = size_bytes / rate - (time.monotonic() - started)
                await asyncio.sleep(max(0.0, ahead))
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    yield ScrubProgress(scanned, corrupt, size_bytes, total)
        yield ScrubProgress(scanned, corrupt, size_bytes, total, is_done=True)

    async def _verify(
        self, size_class: SizeClass, slab: Slab, slots: Iterable[int], scratch: ByteArray
    ) -> tuple[int, int]:
        """How many blocks were read, and how many of them were damaged; those are dropped."""
        rows = [row for row in (size_class.table.owner[slot] for slot in slots) if row != NONE]
        held = size_class.acquire(rows)
        generations = [size_class.table.generations[slot] for slot in held]
        lengths = self.tier.slabs.tenancy(size_class).block_bytes
        sizes = [lengths[size_class.residency.describe(row)[0].group] for row in rows]
        results = await self.movers[slab.stripe].run(
            slab.fetch,
            [slot - slab.base for slot in held],
            list(scratch[: len(rows)]),
            sizes,
            on_end=lambda _: size_class.release(held),
        )
        bad = 0
        for row, slot, generation, outcome in zip(rows, held, generations, results, strict=True):
            if outcome is not Fetched.WHOLE and size_class.is_at(row, slot, generation):
                bad += 1
                self.reader.note_damage(size_class, slab, row, slot, outcome)
        return len(rows), bad


def _scratch(count: int, size_bytes: int) -> ByteArray:
    memory = np.empty(count * size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + count * size_bytes].reshape(count, size_bytes)

"""From HOST to DISK, in the background."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kvtier.agent.placement import Placement
from kvtier.agent.turns import READ_SLICE, WRITE_SLICE, slices
from kvtier.agent.volume_mover import Kind, VolumeMover
from kvtier.core.block import BlockStatus
from kvtier.core.residency import NONE
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Filling, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)

#: What one thread checksums and writes at a time.
_WRITE_BYTES = 8 << 20
_MOST_BLOCKS = 256
_MOST_WAITING = 1 << 16
#: Of `on_evict`: the share of HOST's slots whose blocks are written ahead of their eviction.
_AHEAD_SHARE = 8


class WritePolicy(Enum):
    """When a block of HOST is written to DISK."""

    THROUGH = "through"
    ON_EVICT = "on_evict"
    AFTER_HITS = "after_hits"


@dataclass(eq=False, slots=True)
class _Candidate:
    """A block as it was when it was chosen."""

    host: SizeClass
    row: int
    slot: int
    generation: int


@dataclass(eq=False)
class _Batch:
    """Blocks of one size class that are being written; their slots in HOST stay in use."""

    host: SizeClass
    disk: SizeClass
    blocks: list[_Candidate] = field(default_factory=list)


class Demotion:
    """Writes blocks of HOST to DISK by a policy; stores never wait for it.

    At most `max_in_flight_bytes` of HOST are kept in use by it. What waits beyond 65,536 blocks, or
    while DISK cannot be written to, is looked for again later; what has left HOST by then is not on
    DISK. `prepare` is awaited before a namespace's first block is written.
    """

    def __init__(
        self,
        host: HostTier,
        disk: DiskTier,
        placement: Placement,
        movers: Sequence[VolumeMover],
        *,
        policy: WritePolicy = WritePolicy.THROUGH,
        after_hits: int = 2,
        max_in_flight_bytes: int = 256 << 20,
        prepare: Callable[[int], Awaitable[None]],
    ) -> None:
        self._host = host
        self._disk = disk
        self._placement = placement
        self._movers = movers
        self._policy = policy
        self._after_hits = after_hits
        self._max_in_flight_bytes = max_in_flight_bytes
        self._prepare = prepare
        self._waiting: deque[_Candidate | asyncio.Future[None]] = deque()
        self._writing: dict[tuple[SizeClass, int], int] = {}
        self._hits: Counter[tuple[SizeClass, int, int]] = Counter()
        self._is_behind = False
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self.in_flight_bytes = 0
        self.demoted_count = 0
        self.failed_count = 0
        self.unwritten_count = 0

    def open(self) -> None:
        """From now on DISK may be written to."""
        self._is_open = True
        self.catch_up()

    @property
    def is_writable(self) -> bool:
        return self._is_open and any(mover.is_writable for mover in self._movers)

    @property
    def waiting_bytes(self) -> int:
        """What is chosen and not written yet; blocks that have left HOST since are still in it."""
        waiting = sum(
            each.host.slot_bytes for each in self._waiting if isinstance(each, _Candidate)
        )
        return waiting + self.in_flight_bytes

    # Choosing.

    def stored(self, host: SizeClass, slots: Iterable[int]) -> None:
        """Blocks were committed in these slots."""
        if self._policy is WritePolicy.THROUGH:
            owner = host.table.owner
            self._add(host, [owner[slot] for slot in slots])
        elif self._policy is WritePolicy.ON_EVICT:
            self._add_coldest(host)

    def used(self, host: SizeClass, rows: Iterable[int]) -> None:
        """Blocks were loaded."""
        if self._policy is not WritePolicy.AFTER_HITS:
            return
        if len(self._hits) > _MOST_WAITING:
            self._hits.clear()  # they start from zero; nothing is lost but time
        generations, slot = host.table.generations, host.residency.slot
        due = []
        for row in rows:
            block = (host, row, generations[slot[row]])
            self._hits[block] += 1
            if self._hits[block] == self._after_hits:
                due.append(row)
                del self._hits[block]
        self._add(host, due)

    def _add_coldest(self, host: SizeClass) -> None:
        """What is next to go, once HOST is nearly full, and the prefixes before it."""
        slots = host.extent_bytes // host.slot_bytes
        ahead = max(1, slots // _AHEAD_SHARE)
        if host.free_slots > ahead or self._host.can_grow(host):
            return
        rows: dict[int, None] = {}
        for row in host.policy.coldest(ahead):
            while row != NONE and row not in rows and len(rows) < ahead:
                rows[row] = None
                row = host.residency.parent(row)
        self._add(host, [row for row in rows if not self._is_chosen(host, row)])

    def _is_chosen(self, host: SizeClass, row: int) -> bool:
        return (host, row) in self._writing or self._is_on_disk(host, row)

    def _is_on_disk(self, host: SizeClass, row: int) -> bool:
        lane, block_hash = host.residency.describe(row)
        return self._disk_class(host).residency.find(lane, block_hash) != NONE

    def _disk_class(self, host: SizeClass) -> SizeClass:
        return self._disk.size_class(host.table.namespace_id, host.slot_bytes)

    def _add(self, host: SizeClass, rows: Iterable[int]) -> None:
        if not self.is_writable or len(self._waiting) >= _MOST_WAITING:
            self._is_behind = True
            return
        generations, slots = host.table.generations, host.residency.slot
        self._waiting.extend(
            _Candidate(host, row, slots[row], generations[slots[row]]) for row in rows if row >= 0
        )
        self._pump()

    def catch_up(self) -> None:
        """Looks for what should be on DISK and was not written when its time came."""
        if self._is_behind and self._policy is WritePolicy.THROUGH and self.is_writable:
            self._is_behind = False
            self._spawn(self._choose_all(), self._tasks)

    async def _choose_all(self) -> None:
        """Every block of HOST that is not on DISK."""
        for host in self._host.classes:
            residency = host.residency
            async for part in slices(residency.row_count, WRITE_SLICE):
                while len(self._waiting) >= _MOST_WAITING and self._batches:
                    await asyncio.wait(self._batches, return_when=asyncio.FIRST_COMPLETED)
                rows = [
                    row
                    for row in range(part.start, part.stop)
                    if residency.slot[row] != NONE and not self._is_on_disk(host, row)
                ]
                self._add(host, rows)

    # Writing.

    def _pump(self) -> None:
        """Starts to write what waits, within the bound."""
        looked_at = 0
        while self._waiting and self.in_flight_bytes < self._max_in_flight_bytes:
            head = self._waiting[0]
            if isinstance(head, asyncio.Future):
                self._waiting.popleft()
                self._spawn(self._tell(head, list(self._batches)), self._tasks)
                continue
            batch, seen = self._next_batch(head.host)
            if batch.blocks:
                self._spawn(self._write(batch), self._batches)
            looked_at += seen
            if looked_at >= READ_SLICE and self._waiting:
                asyncio.get_running_loop().call_soon(self._pump)
                return
        if not self._waiting:
            self.catch_up()

    async def _tell(self, done: asyncio.Future[None], batches: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*batches, return_exceptions=True)
        if not done.done():
            done.set_result(None)

    def _next_batch(self, host: SizeClass) -> tuple[_Batch, int]:
        """Blocks of one class that are still there; and how many were looked at."""
        batch, seen = _Batch(host, self._disk_class(host)), 0
        most = max(1, min(_MOST_BLOCKS, _WRITE_BYTES // host.slot_bytes))
        while self._waiting and seen < READ_SLICE and len(batch.blocks) < most:
            block = self._waiting[0]
            if isinstance(block, asyncio.Future) or block.host is not host:
                break
            self._waiting.popleft()
            seen += 1
            if not host.is_at(block.row, block.slot, block.generation):
                self.unwritten_count += 1
                continue
            if self._is_chosen(host, block.row):
                continue
            host.acquire([block.row])
            self._writing[host, block.row] = block.generation
            batch.blocks.append(block)
        self.in_flight_bytes += len(batch.blocks) * host.slot_bytes
        return batch, seen

    async def _write(self, batch: _Batch) -> None:
        host, disk = batch.host, batch.disk
        left = list(batch.blocks)
        try:
            await self._prepare(host.table.namespace_id)
            await self._placement.make_room(disk, len(left))
            targets = disk.take(len(left)) if self.is_writable else []
            by_slab: defaultdict[Slab, list[tuple[_Candidate, int]]] = defaultdict(list)
            for target in targets:
                by_slab[slab_of(disk, target)].append((left.pop(0), target))
            writes = [self._store(batch, slab, pairs) for slab, pairs in by_slab.items()]
            await asyncio.gather(*writes, return_exceptions=True)
        except OSError as error:
            log.warning("DISK: %s", error.strerror or error)
        finally:
            self.failed_count += len(left)
            self._end(host, left)

    async def _store(self, batch: _Batch, slab: Slab, pairs: list[tuple[_Candidate, int]]) -> None:
        host, disk = batch.host, batch.disk
        tenancy = self._disk.slabs.tenancy(disk)
        fillings = []
        for block, target in pairs:
            key = host.residency.key(block.row)
            fillings.append(
                Filling(
                    target - slab.base,
                    disk.table.generations[target],
                    cell_of(host.table, block.slot),
                    tenancy.block_bytes[key.lane.group],
                    key,
                )
            )
        slab.unsynced.update(filling.slot for filling in fillings)
        await self._movers[slab.stripe].run(
            slab.store,
            tenancy.identity,
            fillings,
            size_bytes=len(fillings) * slab.slot_bytes,
            kind=Kind.WRITE,
            on_end=lambda stored: self._landed(batch, slab, pairs, fillings, stored),
        )

    def _landed(
        self,
        batch: _Batch,
        slab: Slab,
        pairs: list[tuple[_Candidate, int]],
        fillings: list[Filling],
        stored: bool | None,
    ) -> None:
        host, disk = batch.host, batch.disk
        orphans = []
        for (block, target), filling in zip(pairs, fillings, strict=True):
            if not stored:
                self.failed_count += 1
            elif not host.is_at(block.row, block.slot, block.generation):
                orphans.append(target)  # evicted on request while it was written
            elif disk.commit(*filling.key, target) is BlockStatus.OK:
                self.demoted_count += 1
        if orphans:
            erased = [target - slab.base for target in orphans]
            self._spawn(self._erase(disk, slab, orphans, erased), self._tasks)
        gone = set(orphans)
        disk.release([target for _, target in pairs if target not in gone])
        self._end(host, [block for block, _ in pairs])

    async def _erase(
        self, disk: SizeClass, slab: Slab, targets: list[int], slots: list[int]
    ) -> None:
        mover = self._movers[slab.stripe]
        await mover.run(slab.erase, slots, on_end=lambda _: disk.release(targets))

    def _end(self, host: SizeClass, blocks: list[_Candidate]) -> None:
        for block in blocks:
            del self._writing[host, block.row]
        host.release([block.slot for block in blocks])
        self.in_flight_bytes -= len(blocks) * host.slot_bytes
        self._pump()

    # Flushing.

    async def flush(self) -> int:
        """Returns when every block that HOST has now is on DISK and synced: bytes written.

        Raises OSError if that cannot be.
        """
        self._require_writable()
        failed, demoted = self.failed_count, sum(mover.written_bytes for mover in self._movers)
        await self._choose_all()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._pump()
        await done
        if self.failed_count > failed:
            self._require_writable()
            raise OSError(f"{self.failed_count - failed} blocks could not be written")
        await self.sync()
        return sum(mover.written_bytes for mover in self._movers) - demoted

    async def settled(self) -> None:
        """Returns when what is being written now has been."""
        await asyncio.gather(*self._batches, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _require_writable(self) -> None:
        if not self._is_open:
            raise OSError("the tables of DISK are still being read")
        for mover in self._movers:
            if not mover.is_writable:
                raise OSError(f"{mover.volume.path}: {mover.reason}")

    async def sync(self) -> None:
        """Makes durable what was written. Raises OSError; what was at stake counts as lost."""
        dirty = [(size_class, slab) for size_class, slab in self._disk.all_slabs() if slab.unsynced]
        results = await asyncio.gather(
            *(self._sync(size_class, slab) for size_class, slab in dirty), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _sync(self, size_class: SizeClass, slab: Slab) -> None:
        at_stake, slab.unsynced = slab.unsynced, set()
        try:
            await self._movers[slab.stripe].run(slab.sync)
        except OSError:
            owner, lost = size_class.table.owner, 0
            for slot in at_stake:
                row = owner[slab.base + slot]
                if row != NONE:
                    size_class.forget(row)
                    lost += 1
            log.error("%s: a sync failed; %d blocks count as lost", slab.name, lost)
            raise

    def _spawn(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def close(self) -> None:
        """Ends what is under way; what is in a thread's hands completes."""
        self._is_open = False
        self._waiting.clear()
        work = [*self._tasks, *self._batches]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

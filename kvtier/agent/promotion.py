"""From DISK to HOST."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.agent.namespaces import Namespace
from kvtier.agent.placement import Placement
from kvtier.agent.turns import READ_SLICE, slices
from kvtier.agent.volume_mover import Kind, VolumeMover
from kvtier.core.block import BlockKey, BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.residency import NONE
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Fetched, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)

#: What one thread reads and verifies at a time, while others read on.
_READ_BYTES = 8 << 20
_MOST_BLOCKS = 256
_LAUNCH_SLICE = 32


@dataclass(eq=False)
class Flight:
    """One block on its way. Whoever joined it leaves it with `Promotion.leave`.

    Until all have left, its slot in HOST stays in use, so that the block cannot be evicted before
    it is leased. `answer` is whether it arrived.
    """

    host: SizeClass
    disk: SizeClass
    row: int
    disk_slot: int
    sequence: int
    key: BlockKey
    slot: int
    answer: asyncio.Future[bool]
    users: int = 0
    landed: bool = False

    @property
    def has_arrived(self) -> bool:
        return self.answer.done() and self.answer.result()


class Promotion:
    """Reads each block once however many ask for it, batched and in the order of position.

    Nothing is promoted that has not a slot in HOST, and nothing waits for a lease to end.
    """

    def __init__(self, disk: DiskTier, placement: Placement, movers: Sequence[VolumeMover]) -> None:
        self._disk = disk
        self._placement = placement
        self._movers = movers
        self._flights: dict[tuple[SizeClass, Lane, bytes], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_damaged: Callable[[SizeClass, Slab], None] = lambda size_class, slab: None
        #: Sequences up to this one are of an earlier run.
        self.last_recovered = 0
        self.promoted_count = 0
        self.corrupt_count = 0
        self.unreadable_count = 0

    def rows(self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes]) -> list[int]:
        """Rows of blocks that DISK has and can give now, -1 for others."""
        disk = namespace.tiers[Tier.DISK][lane.group]
        rows = disk.find_many(lane, hashes)
        if all(mover.is_readable for mover in self._movers):
            return rows
        return [row if row != NONE and self._is_readable(disk, row) else NONE for row in rows]

    def _is_readable(self, disk: SizeClass, row: int) -> bool:
        slab = slab_of(disk, disk.residency.slot[row])
        return self._movers[slab.stripe].is_readable

    def is_under_way(self, host: SizeClass, lane: Lane, block_hash: bytes) -> bool:
        return (host, lane, block_hash) in self._flights

    async def start(
        self, namespace: Namespace, keys: BlockKeys, most: int, flights: list[Flight]
    ) -> None:
        """Begins to bring what DISK has and HOST has not: the leading ones for which there is room.

        Joins what is under way already. At most `most` blocks are brought. What the caller has
        joined is added to `flights`, to be left by it, whether this fails or not.
        """
        host = namespace.groups[keys.lane.group]
        disk = namespace.tiers[Tier.DISK][keys.lane.group]
        wanted: list[tuple[bytes, int]] = []
        async for part in slices(len(keys.hashes), READ_SLICE):
            hashes = keys.hashes[part]
            missing = [
                block_hash
                for block_hash, row in zip(hashes, host.find_many(keys.lane, hashes), strict=True)
                if row == NONE
            ]
            for block_hash, row in zip(
                missing, self.rows(namespace, keys.lane, missing), strict=True
            ):
                flight = self._flights.get((host, keys.lane, block_hash))
                if flight is not None:
                    flights.append(self._join(flight))
                elif row != NONE and len(wanted) < most:
                    wanted.append((block_hash, row))
        if wanted:
            await self._launch(host, disk, keys.lane, wanted, flights)

    def _join(self, flight: Flight) -> Flight:
        flight.users += 1
        return flight

    async def _launch(
        self,
        host: SizeClass,
        disk: SizeClass,
        lane: Lane,
        wanted: list[tuple[bytes, int]],
        flights: list[Flight],
    ) -> None:
        sources = disk.acquire([row for _, row in wanted])  # not evicted while room is made
        sequences = [disk.table.generations[slot] for slot in sources]
        new: list[Flight] = []
        try:
            await self._placement.make_room(host, len(wanted))
            found = zip(wanted, sources, sequences, strict=True)
            for number, ((block_hash, row), slot, sequence) in enumerate(found):
                if number % _LAUNCH_SLICE == _LAUNCH_SLICE - 1:
                    self._take_off(new)
                    new = []
                    await asyncio.sleep(0)
                existing = self._flights.get((host, lane, block_hash))
                if existing is not None:
                    flights.append(self._join(existing))
                    continue
                if host.residency.find(lane, block_hash) != NONE:
                    continue
                if not disk.is_at(row, slot, sequence):
                    continue
                taken = host.take(1)
                if not taken:
                    break
                flight = Flight(
                    host,
                    disk,
                    row,
                    slot,
                    sequence,
                    disk.residency.key(row),
                    taken[0],
                    asyncio.get_running_loop().create_future(),
                )
                disk.acquire([row])
                self._flights[host, lane, block_hash] = flight
                flights.append(self._join(flight))
                new.append(flight)
        finally:
            disk.release(sources)
            self._take_off(new)

    def _take_off(self, new: list[Flight]) -> None:
        """Reads what has been given a slot, slab by slab, in pieces that threads share."""
        by_slab: defaultdict[Slab, list[Flight]] = defaultdict(list)
        for flight in reversed(new):
            flight.disk.touch([flight.row])
        for flight in new:
            by_slab[slab_of(flight.disk, flight.disk_slot)].append(flight)
        for slab, flights in by_slab.items():
            flights.sort(key=lambda flight: flight.disk_slot)
            step = max(1, min(_MOST_BLOCKS, _READ_BYTES // slab.slot_bytes))
            for first in range(0, len(flights), step):
                self._spawn(self._read(slab, flights[first : first + step]))

    async def _read(self, slab: Slab, flights: list[Flight]) -> None:
        lengths = self._disk.slabs.tenancy(flights[0].disk).block_bytes
        cells: list[ByteArray] = [cell_of(flight.host.table, flight.slot) for flight in flights]
        try:
            await self._movers[slab.stripe].run(
                slab.fetch,
                [flight.disk_slot - slab.base for flight in flights],
                cells,
                [lengths[flight.key.lane.group] for flight in flights],
                size_bytes=len(flights) * slab.slot_bytes,
                kind=Kind.READ,
                on_end=lambda results: self._land(slab, flights, results),
            )
        except OSError:
            for flight in flights:  # nobody waits longer; the slots stay in use until it has ended
                self._answer(flight, arrived=False)

    def _land(self, slab: Slab, flights: list[Flight], results: list[Fetched] | None) -> None:
        outcomes = results or [Fetched.UNREADABLE] * len(flights)
        for flight, outcome in zip(flights, outcomes, strict=True):
            arrived = False
            is_current = flight.disk.is_at(flight.row, flight.disk_slot, flight.sequence)
            if not is_current:
                pass  # evicted on request while it was read
            elif outcome is Fetched.WHOLE:
                status = flight.host.commit(*flight.key, flight.slot)
                arrived = True
                self.promoted_count += status is BlockStatus.OK
            elif results is not None:
                self.note_damage(flight.disk, slab, flight.row, flight.disk_slot, outcome)
            flight.landed = True
            self._answer(flight, arrived=arrived)
            if not flight.users:
                flight.host.release([flight.slot])
        for flight in flights:
            flight.disk.release([flight.disk_slot])

    def note_damage(
        self, disk: SizeClass, slab: Slab, row: int, slot: int, outcome: Fetched
    ) -> None:
        """A damaged block is dropped at once, an unreadable one when it is so again."""
        index = slot - slab.base
        is_known = index in slab.damaged
        if not is_known:
            is_recovered = disk.table.generations[slot] <= self.last_recovered
            slab.note_damage(index, is_recovered=is_recovered and outcome is Fetched.DAMAGED)
            log.warning("%s: slot %d is %s", slab.data_path, index, outcome.value)
        if outcome is Fetched.DAMAGED:
            self.corrupt_count += 1
        else:
            self.unreadable_count += 1
        if outcome is Fetched.DAMAGED or is_known:
            disk.forget(row)
        if slab.is_beyond_repair:
            self.on_damaged(disk, slab)

    def _answer(self, flight: Flight, *, arrived: bool) -> None:
        if not flight.answer.done():
            flight.answer.set_result(arrived)
            key = flight.key
            del self._flights[flight.host, key.lane, key.block_hash]

    def leave(self, flights: Iterable[Flight]) -> None:
        """The caller has leased what arrived, or waits no longer."""
        for flight in flights:
            flight.users -= 1
            if not flight.users and flight.landed:
                flight.host.release([flight.slot])

    def seconds_until(self, disk: SizeClass, rows: Iterable[int]) -> float:
        """The estimate of when all of these could be read from HOST, if asked for now."""
        size_bytes: defaultdict[int, int] = defaultdict(int)
        for row in rows:
            size_bytes[slab_of(disk, disk.residency.slot[row]).stripe] += disk.slot_bytes
        return max(
            (self._movers[stripe].seconds_until_read(size) for stripe, size in size_bytes.items()),
            default=0.0,
        )

    def seconds_until_landed(self) -> float:
        """The estimate of when what is under way now has arrived."""
        return max(mover.seconds_until_read(0) for mover in self._movers)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

"""Fetch blocks out of slabs."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.agent.moving.flight import Fetch, Flight
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.moving.storage_mover import Kind, StorageMover
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import BlockKey, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.residency import NONE
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.slab import Fetched, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.size_class import Counters, SizeClass

log = logging.getLogger(__name__)

#: What one thread reads and verifies at a time, while others read on.
_READ_BYTES = 8 << 20
_MOST_BLOCKS = 256
#: Of a prefetch: a load that comes while it is read waits for it.
_AHEAD_BYTES = 2 << 20


@dataclass(eq=False, slots=True)
class _Place:
    """An origin on DISK: its slot has a reference."""

    disk: SizeClass
    row: int
    slot: int
    sequence: int

    @property
    def is_current(self) -> bool:
        return self.disk.is_at(self.row, self.slot, self.sequence)

    @property
    def key(self) -> BlockKey:
        return self.disk.residency.key(self.row)

    def drop(self) -> None:
        self.disk.release([self.slot])


class DiskReader:
    """DISK as a source of promotion: batched, in the order of position."""

    tier = Tier.DISK
    is_remote = False

    def __init__(self, disk: DiskTier, movers: Sequence[StorageMover[Volume]]) -> None:
        self._disk = disk
        self._movers = movers
        self.on_damaged: Callable[[SizeClass, Slab], None] = lambda size_class, slab: None
        #: Sequences up to this one are of an earlier run.
        self.last_recovered = 0
        self.corrupt_count = 0
        self.unreadable_count = 0

    async def learn(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], *, is_prefix: bool
    ) -> None:
        """The books know."""

    def counters(self, namespace: Namespace, group: int) -> Counters:
        return namespace.tiers[Tier.DISK][group].counters

    def has(self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes]) -> list[bool]:
        disk = namespace.tiers[Tier.DISK][lane.group]
        rows = disk.find_many(lane, hashes)
        if all(mover.is_readable for mover in self._movers):
            return [row != NONE for row in rows]
        return [row != NONE and self._is_readable(disk, row) for row in rows]

    def _is_readable(self, disk: SizeClass, row: int) -> bool:
        slab = slab_of(disk, disk.residency.slot[row])
        return self._movers[slab.stripe].is_readable

    def claim(self, namespace: Namespace, lane: Lane, block_hash: bytes) -> _Place | None:
        disk = namespace.tiers[Tier.DISK][lane.group]
        row = disk.find(lane, block_hash)
        if row == NONE:
            return None
        [slot] = disk.acquire([row])
        return _Place(disk, row, slot, disk.table.generations[slot])

    def read(
        self, promotion: Promotion, flights: Sequence[Flight]
    ) -> Iterable[Coroutine[Any, Any, None]]:
        by_slab: defaultdict[Slab, list[Flight]] = defaultdict(list)
        for flight in reversed(flights):  # the beginning of a prefix is touched last
            place = _place(flight)
            if place.is_current and not flight.is_ahead:  # that is no use yet
                place.disk.touch([place.row])
        for flight in flights:
            place = _place(flight)
            by_slab[slab_of(place.disk, place.slot)].append(flight)
        for slab, each in by_slab.items():
            each.sort(key=lambda flight: _place(flight).slot)
            step = self._step(slab.stripe, slab.slot_bytes, each[0].kind)
            for first in range(0, len(each), step):
                yield self._read(promotion, slab, Fetch(each[first : first + step]))

    async def _read(self, promotion: Promotion, slab: Slab, reading: Fetch) -> None:
        flights = reading.flights
        places = [_place(flight) for flight in flights]
        lengths = self._disk.slabs.tenancy(places[0].disk).block_bytes
        cells: list[ByteArray] = [cell_of(flight.host.table, flight.slot) for flight in flights]
        try:
            await self._movers[slab.stripe].run(
                slab.fetch,
                [place.slot - slab.base for place in places],
                cells,
                [lengths[flight.lane.group] for flight in flights],
                size_bytes=len(flights) * slab.slot_bytes,
                ticket=reading.ticket,
                on_end=lambda results: self._landed(promotion, slab, flights, results),
            )
        except OSError:
            for flight in flights:
                promotion.give_up(flight)

    def _landed(
        self,
        promotion: Promotion,
        slab: Slab,
        flights: Sequence[Flight],
        results: list[Fetched] | None,
    ) -> None:
        outcomes = results or [Fetched.UNREADABLE] * len(flights)
        for flight, outcome in zip(flights, outcomes, strict=True):
            place = _place(flight)
            is_whole = outcome is Fetched.WHOLE and place.is_current
            is_bad = outcome is not Fetched.WHOLE and results is not None and place.is_current
            if is_whole:
                flight.stored_at = place.disk.lifetimes.stored_at(place.row)
            promotion.land(flight, place.key if is_whole else None)
            if is_bad:
                self.note_damage(place.disk, slab, place.row, place.slot, outcome)

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
            disk.forget(row, Cause.DAMAGED)
        if slab.is_beyond_repair:
            self.on_damaged(disk, slab)

    def _step(self, stripe: int, slot_bytes: int, kind: Kind = Kind.READ) -> int:
        """How many blocks one call reads."""
        most_bytes = _AHEAD_BYTES if kind is Kind.PREFETCH else _READ_BYTES
        piece_bytes = self._movers[stripe].forecast.piece_bytes(most_bytes)
        return max(1, min(_MOST_BLOCKS, piece_bytes // slot_bytes))

    def expect(self, namespace: Namespace) -> _DiskExpectation:
        return _DiskExpectation(namespace, self._movers, self._step)

    def first_blocks(self, namespace: Namespace, lane: Lane) -> int:
        slot_bytes = namespace.tiers[Tier.DISK][lane.group].slot_bytes
        return sum(
            self._step(stripe, slot_bytes) * mover.forecast.depth
            for stripe, mover in enumerate(self._movers)
        )

    def seconds_until_learned(self) -> float:
        return 0.0

    @property
    def measured_at(self) -> float:
        return min(mover.forecast.measured_at for mover in self._movers)

    def seconds_until_landed(self) -> float:
        return max(
            mover.forecast.seconds_until_read(mover.prefetch_bytes) for mover in self._movers
        )


class _DiskExpectation:
    """Volumes read side by side."""

    def __init__(
        self,
        namespace: Namespace,
        movers: Sequence[StorageMover[Volume]],
        step: Callable[[int, int], int],
    ) -> None:
        self._namespace = namespace
        self._movers = movers
        self._step = step
        self._size_bytes: Counter[int] = Counter()
        self._calls: Counter[int] = Counter()

    def add(self, lane: Lane, hashes: Sequence[bytes]) -> float:
        disk = self._namespace.tiers[Tier.DISK][lane.group]
        blocks = Counter(
            slab_of(disk, disk.residency.slot[row]).stripe
            for row in disk.find_many(lane, hashes)
            if row != NONE
        )
        for stripe, count in blocks.items():
            self._size_bytes[stripe] += count * disk.slot_bytes
            self._calls[stripe] += -(-count // self._step(stripe, disk.slot_bytes))
        return max(
            (
                self._movers[stripe].forecast.seconds_until_read(size_bytes, self._calls[stripe])
                for stripe, size_bytes in self._size_bytes.items()
            ),
            default=0.0,
        )


def _place(flight: Flight) -> _Place:
    assert isinstance(flight.origin, _Place)
    return flight.origin

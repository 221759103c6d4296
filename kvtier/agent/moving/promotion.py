"""From slower tiers to HOST."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from kvtier.agent.moving.arrivals import Arrivals
from kvtier.agent.moving.flight import Fetch, Flight
from kvtier.agent.moving.job_queue import Kind
from kvtier.agent.moving.late_arrivals import LateArrivals
from kvtier.agent.moving.source import Source
from kvtier.agent.placing.placement import Placement
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import READ_SLICE, data_line, data_slices, slices
from kvtier.core.block import BlockKey, BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.policies.base import ALWAYS
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

#: What is asked of a source together.
_LAUNCH_BLOCKS = 32
_LAUNCH_BYTES = 16 << 20
#: What is begun in one turn of the loop.
_LAUNCH_SLICE = 8


class Promotion:
    """Reads each block once however many ask for it, from the first of `sources` that has it.

    Nothing is promoted that has not a slot in HOST, and nothing waits for a lease to end.
    """

    def __init__(self, placement: Placement, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._placement = placement
        self._flights: dict[tuple[SizeClass, Lane, bytes], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._late = LateArrivals()
        #: Of HOST, in use for prefetches that have not landed.
        self.prefetch_bytes = 0
        #: Likewise, with those that a load has joined.
        self.ahead_bytes = 0
        #: Of HOST, in use for what has not landed, by the tier that it comes from.
        self.in_flight_bytes = [0] * (max(Tier) + 1)
        self.on_landed: Callable[[Flight], None] = lambda flight: None

    @property
    def host(self) -> SlotTier:
        return self._placement.tier

    @property
    def has_remote_sources(self) -> bool:
        return any(source.is_remote for source in self.sources)

    def arrivals(self, namespace: Namespace) -> Arrivals:
        """The estimate, of nothing yet."""
        return Arrivals(self._placement, namespace)

    async def learn(
        self,
        namespace: Namespace,
        lane: Lane,
        hashes: Sequence[bytes],
        tiers: frozenset[Tier],
        *,
        is_prefix: bool,
    ) -> None:
        """Asks sources on other machines for what nobody nearer has."""
        remote = [source for source in self.sources if source.is_remote and source.tier in tiers]
        if not remote:
            return
        host = namespace.groups[lane.group]
        missing: list[bytes] = []
        async for part in slices(len(hashes), READ_SLICE):
            rows = host.find_many(lane, hashes[part])
            away = [each for each, row in zip(hashes[part], rows, strict=True) if row == NONE]
            found = self.find(namespace, lane, away, tiers)
            missing += [each for each, source in zip(away, found, strict=True) if source is None]
        for source in remote:
            if missing:
                await source.learn(namespace, lane, missing, is_prefix=is_prefix)

    def find(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], tiers: frozenset[Tier]
    ) -> list[Source | None]:
        """The source that would give each block now, of these tiers; None where none has it."""
        found: list[Source | None] = [None] * len(hashes)
        if namespace.is_renewing:
            return found
        missing = list(range(len(hashes)))
        for source in self.sources:
            if source.tier in tiers and missing:
                here = source.has(namespace, lane, [hashes[index] for index in missing])
                for index, is_here in zip(missing, here, strict=True):
                    if is_here:
                        found[index] = source
                missing = [index for index in missing if found[index] is None]
        return found

    def flight(self, host: SizeClass, lane: Lane, block_hash: bytes) -> Flight | None:
        """The block's, if it is under way."""
        return self._flights.get((host, lane, block_hash))

    async def start(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        most: int,
        flights: list[Flight],
        *,
        kind: Kind = Kind.READ,
        worth: float = ALWAYS,
        goes_on: bool = True,
    ) -> None:
        """Begins to bring what HOST has not and a source has: the leading ones for which there is
        room.

        Joins what is under way already. At most `most` blocks are brought, and what is in HOST
        makes way if it is worth less. What the caller has joined is added to `flights`, to be left
        by it, whether this fails or not. Of a load that is not to go on, what has not begun when
        the last one leaves is not read.
        """
        joined = len(flights)
        try:
            await self._start(namespace, keys, most, flights, kind, worth)
        finally:
            for flight in flights[joined:]:
                flight.goes_on |= goes_on and kind is Kind.READ

    async def _start(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        most: int,
        flights: list[Flight],
        kind: Kind,
        worth: float,
    ) -> None:
        host, everywhere = namespace.groups[keys.lane.group], frozenset(Tier)
        wanted: list[tuple[bytes, Source]] = []
        async for part in data_slices(len(keys.hashes), READ_SLICE):
            hashes = keys.hashes[part]
            missing = [
                block_hash
                for block_hash, row in zip(hashes, host.find_many(keys.lane, hashes), strict=True)
                if row == NONE
            ]
            found = self.find(namespace, keys.lane, missing, everywhere)
            for block_hash, source in zip(missing, found, strict=True):
                flight = self.flight(host, keys.lane, block_hash)
                if flight is not None:
                    flights.append(self._join(flight, kind))
                elif source is not None and len(wanted) < most:
                    wanted.append((block_hash, source))
        if wanted:
            await self._launch(namespace, keys.lane, wanted, flights, kind, worth)

    def _join(self, flight: Flight, kind: Kind) -> Flight:
        """A load takes those that are read with it along."""
        flight.users += 1
        if kind is Kind.READ and flight.kind is Kind.PREFETCH and flight.fetch is not None:
            for each in flight.fetch.flights:
                self._count_prefetch(each, -1)
                each.kind = Kind.READ
            flight.fetch.ticket.hurry()
        return flight

    def _count_prefetch(self, flight: Flight, sign: int) -> None:
        if flight.kind is Kind.PREFETCH and not flight.landed:
            self.prefetch_bytes += sign * flight.host.slot_bytes

    async def _launch(
        self,
        namespace: Namespace,
        lane: Lane,
        wanted: list[tuple[bytes, Source]],
        flights: list[Flight],
        kind: Kind,
        worth: float,
    ) -> None:
        host = namespace.groups[lane.group]
        # Kept from now on: making room takes a while.
        claimed = [
            (block_hash, source, origin)
            for block_hash, source in wanted
            if (origin := source.claim(namespace, lane, block_hash)) is not None
        ]
        claimed.reverse()
        new: list[Flight] = []
        try:
            while claimed:
                if not host.free_slots:  # what there is room for is read meanwhile
                    self._take_off(new)
                    new = []
                    count = min(len(claimed), _LAUNCH_BLOCKS)
                    await self._placement.make_room(host, count, worth)
                block_hash, source, origin = claimed[-1]
                existing = self.flight(host, lane, block_hash)
                if existing is not None:
                    flights.append(self._join(existing, kind))
                elif host.find(lane, block_hash) == NONE and origin.is_current:
                    taken = host.take(1, worth)
                    if not taken:
                        break
                    claimed.pop()  # the flight drops it
                    answer = asyncio.get_running_loop().create_future()
                    flight = Flight(
                        namespace, host, source, origin, lane, block_hash, taken[0], answer
                    )
                    flight.kind, flight.is_ahead = kind, kind is Kind.PREFETCH
                    self._count_prefetch(flight, 1)
                    self.ahead_bytes += host.slot_bytes * flight.is_ahead
                    self.in_flight_bytes[source.tier] += host.slot_bytes
                    self._flights[host, lane, block_hash] = flight
                    flights.append(self._join(flight, kind))
                    new.append(flight)
                    if len(new) % _LAUNCH_SLICE == 0:
                        if len(new) >= min(_LAUNCH_BLOCKS, _LAUNCH_BYTES // host.slot_bytes):
                            self._take_off(new)
                            new = []
                        await data_line().turn()
                    continue
                claimed.pop()
                origin.drop()
        finally:
            self._placement.grow_ahead(host)
            for _, _, origin in claimed:
                origin.drop()
            self._take_off(new)

    def _take_off(self, new: Sequence[Flight]) -> None:
        by_source: defaultdict[Source, list[Flight]] = defaultdict(list)
        for flight in new:
            by_source[flight.source].append(flight)
        for source, flights in by_source.items():
            for work in source.read(self, flights):
                self.spawn(work)

    def land(self, flight: Flight, key: BlockKey | None) -> None:
        """The read has ended, and nothing writes to the slot any more.

        `key` is the block's if its slot holds the block's bytes now, verified; None if not.
        """
        if not flight.origin.is_current:
            key = None
        if key is not None and (
            flight.host.commit(*key, flight.slot, stored_at=flight.stored_at) is BlockStatus.OK
        ):
            flight.source.counters(flight.namespace, flight.lane.group).promoted += 1
            usage = flight.namespace.usage.tiers[flight.source.tier]
            usage.promotions.observe(time.monotonic() - flight.begun_at)
            if flight.is_ahead:
                flight.host.unused.bring(flight.host.table.owner[flight.slot])
            elif not flight.users:
                self._late.note(flight)
        self._count_prefetch(flight, -1)
        self.ahead_bytes -= flight.host.slot_bytes * flight.is_ahead
        self.in_flight_bytes[flight.source.tier] -= flight.host.slot_bytes
        flight.landed = True
        self._answer(flight, arrived=key is not None)
        flight.origin.drop()
        if not flight.users:
            flight.host.release([flight.slot])
        self.on_landed(flight)

    async def claim_late(
        self, namespace: Namespace, keys: BlockKeys
    ) -> dict[tuple[Lane, bytes], Source]:
        """Who supplied those of the keys that landed when nobody waited, and were not leased."""
        found: dict[tuple[Lane, bytes], Source] = {}
        if self._late:
            host = namespace.groups[keys.lane.group]
            async for part in data_slices(len(keys.hashes), READ_SLICE):
                found |= self._late.claim(host, keys.lane, keys.hashes[part])
        return found

    def give_up(self, flight: Flight) -> None:
        """Nobody waits longer; the slot stays in use until the read has ended."""
        self._answer(flight, arrived=False)

    def _answer(self, flight: Flight, *, arrived: bool) -> None:
        if not flight.answer.done():
            flight.answer.set_result(arrived)
            del self._flights[flight.host, flight.lane, flight.block_hash]

    def leave(self, flights: Iterable[Flight]) -> None:
        """The caller has leased what arrived, or waits no longer."""
        left = list(flights)
        for flight in left:
            flight.users -= 1
            if not flight.users and flight.landed:
                flight.host.release([flight.slot])
        self._drop_unwanted(left)

    def _drop_unwanted(self, flights: Iterable[Flight]) -> None:
        """Calls that nobody wants any more are not done, unless they have begun."""
        fetches: dict[Fetch, None] = {}
        for flight in flights:
            if flight.fetch is not None and not flight.landed and not flight.is_wanted:
                fetches[flight.fetch] = None
        for fetch in fetches:
            fetch.drop_if_unwanted()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Does it in the background, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wish(self, flights: Iterable[Flight]) -> None:
        """A prefetch wants them until it calls `unwish`."""
        for flight in flights:
            flight.wishes += 1

    def unwish(self, flights: Iterable[Flight]) -> None:
        """A prefetch wants them no longer."""
        left = list(flights)
        for flight in left:
            flight.wishes -= 1
        self._drop_unwanted(left)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

"""What of a request's blocks is worth waiting for, and the waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.moving.source import Source
from kvtier.agent.serving.whereabouts import PLACES, At, Run, Whereabouts
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import READ_SLICE, data_slices
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.break_even import (
    CAUTION,
    CONFIRMED,
    DISTRUSTED,
    TRUSTED,
    Patience,
    allowance,
    worth_waiting,
)
from kvtier.errors import InvalidRequestError

_EVERYTHING = frozenset(Tier)
#: Of several lanes, so much is read of one before the next one.
_TURN_BLOCKS = 16
#: What was measured so lately is believed to hold on.
_FRESH_SECONDS = 600.0
#: After a wait in vain, doubled with each further one.
_DISTRUST_SECONDS, _MOST_DISTRUST_SECONDS = 5.0, 300.0
#: So much later than expected is in time.
_HASTE_SECONDS = 0.002
#: A tier that is not worth waiting for is tried again: so much at a time, with pauses that last so
#: many times longer than the trial took, within these bounds.
_PROBE_BLOCKS, _PROBE_BYTES = 8, 4 << 20
_PROBE_PAUSE, _LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 5.0, 1.0, 10.0


class Worth:
    """How much of some entries is worth loading, by positions counted from the lowest.

    Of `asked` positions the first `here` are in HOST, the first `count` are worth waiting for, for
    `allowed_seconds` at a stretch, and the first `arrived` can be leased. No more than `most` are
    waited for now (0: all). Room for them may take `room_seconds`.
    """

    def __init__(self, entries: Sequence[BlockKeys], compute_seconds: float, most: int = 0) -> None:
        self.entries = entries
        self.compute_seconds = compute_seconds
        self.base = min(keys.position for keys in entries)
        self.asked = max(keys.position + len(keys.hashes) for keys in entries) - self.base
        if self.asked > sum(len(keys.hashes) for keys in entries):
            raise InvalidRequestError(
                f"keys: {self.asked} positions from the first entry's beginning to the last one's "
                "end, and fewer keys; BREAK_EVEN takes entries of one prefix, without a gap"
            )
        self.most = most or self.asked
        self.here = self.count = 0
        self.arrived = self.asked  # as far as they are in HOST, if it comes to nothing
        self.allowed_seconds = self.room_seconds = 0.0

    def part(self, keys: BlockKeys, start: int, stop: int) -> tuple[bytes, ...]:
        """What an entry has from one position up to another."""
        first = max(0, self.base + start - keys.position)
        return keys.hashes[first : max(0, self.base + stop - keys.position)]

    def leading(self, keys: BlockKeys) -> BlockKeys:
        """What an entry has of what arrived."""
        return BlockKeys(keys.lane, self.part(keys, 0, self.arrived), keys.parent, keys.position)

    def parts(self) -> Iterator[list[BlockKeys]]:
        """What is to be brought, in the order in which it is of use: lanes in turns."""
        step = max(1, self.count) if len(self.entries) == 1 else _TURN_BLOCKS
        for start in range(0, self.count, step):
            yield [
                BlockKeys(keys.lane, part, b"", max(keys.position, self.base + start))
                for keys in self.entries
                if (part := self.part(keys, start, min(start + step, self.count)))
            ]


@dataclass
class _Record:
    """How a source kept its word."""

    failures: int = 0
    distrusted_until: float = 0.0
    probe_at: float = 0.0
    is_probing: bool = False


@dataclass
class _Stretch:
    """Consecutive positions in one place."""

    place: int
    start: int
    count: int
    ready_seconds: float = 0.0
    room_seconds: float = 0.0
    source: Source | None = None


class Prospects:
    """Judges by what sources expect, and remembers who did not keep to it."""

    def __init__(self, promotion: Promotion, whereabouts: Whereabouts) -> None:
        self._promotion = promotion
        self._whereabouts = whereabouts
        self._records: dict[Tier, _Record] = {}

    async def judge(self, namespace: Namespace, worth: Worth) -> None:
        """Finds out for how many leading positions to wait.

        A tier that is not worth it is tried in the background, now and then.
        """
        stretches = await self._stretches(namespace, worth)
        count = worth_waiting(
            ((each.count, each.ready_seconds) for each in stretches), worth.compute_seconds
        )
        for each in stretches:
            if each.source is None:
                worth.here += each.count if worth.here == each.start else 0
                worth.count = min(count, each.start + each.count)
                continue
            first, share = self._first_seconds(namespace, worth, each), self._trust(each.source)
            allowed = allowance(worth.asked, worth.compute_seconds, first, share)
            # What is not expected before it is given up is not begun.
            if each.start >= count or share == DISTRUSTED or allowed < first:
                self._probe(namespace, worth.entries, worth.base + each.start, each.source)
                break
            worth.allowed_seconds = max(worth.allowed_seconds, allowed)
            room = allowance(worth.asked, worth.compute_seconds, each.room_seconds, share)
            worth.room_seconds = max(worth.allowed_seconds, room)
            worth.count = each.start + each.count
        worth.here, worth.count = min(worth.here, worth.most), min(worth.count, worth.most)
        worth.arrived = worth.here

    async def _places(self, namespace: Namespace, worth: Worth) -> list[int]:
        """Where the slowest lane of each leading position is."""
        places = [int(At.HOST)] * worth.asked
        for keys in worth.entries:
            async for part in data_slices(len(keys.hashes), READ_SLICE):
                hashes = keys.hashes[part]
                column = self._whereabouts.column(namespace, keys.lane, hashes, _EVERYTHING)
                first = keys.position - worth.base + part.start
                stop = first + len(hashes)
                places[first:stop] = [
                    max(row) if all(row) else int(At.NOWHERE)
                    for row in zip(places[first:stop], column, strict=True)
                ]
        return places[: [*places, At.NOWHERE].index(At.NOWHERE)]

    async def _stretches(self, namespace: Namespace, worth: Worth) -> list[_Stretch]:
        sources = {int(PLACES[source.tier]): source for source in self._promotion.sources}
        arrivals = self._promotion.arrivals(namespace)
        found: list[_Stretch] = []
        start = 0
        for place, group in groupby(await self._places(namespace, worth)):
            each = _Stretch(place, start, len(list(group)), source=sources.get(place))
            start += each.count
            if place == At.ON_ITS_WAY:
                each.source = self._bringing(namespace, worth, each)
                each.ready_seconds = each.source.seconds_until_landed() if each.source else 0.0
            elif each.source is not None:
                for keys in worth.entries:
                    part = worth.part(keys, each.start, start)
                    each.ready_seconds = arrivals.add(each.source, keys.lane, part)
                    each.room_seconds = arrivals.seconds_until_room()
                    await asyncio.sleep(0)
            found.append(each)
        return found

    def _bringing(self, namespace: Namespace, worth: Worth, stretch: _Stretch) -> Source | None:
        flights = [
            self._promotion.flight(namespace.groups[keys.lane.group], keys.lane, block_hash)
            for keys in worth.entries
            for block_hash in worth.part(keys, stretch.start, stretch.start + stretch.count)
        ]
        sources = {flight.source for flight in flights if flight is not None}
        return max(sources, key=lambda source: source.seconds_until_landed(), default=None)

    def _first_seconds(self, namespace: Namespace, worth: Worth, stretch: _Stretch) -> float:
        """When something of a stretch is expected, if there is room for what is waited for."""
        assert stretch.source is not None
        if stretch.place == At.ON_ITS_WAY:
            return stretch.ready_seconds
        arrivals, seconds = self._promotion.arrivals(namespace), 0.0
        for keys in worth.entries:
            part = worth.part(keys, stretch.start, stretch.start + stretch.count)
            first = part[: stretch.source.first_blocks(namespace, keys.lane)]
            seconds = arrivals.add(stretch.source, keys.lane, first)
        return seconds

    def _trust(self, source: Source) -> float:
        record, now = self._record(source.tier), time.monotonic()
        if now < record.distrusted_until:
            return DISTRUSTED
        return CONFIRMED if now - source.measured_at < _FRESH_SECONDS else TRUSTED

    def _record(self, tier: Tier) -> _Record:
        return self._records.setdefault(tier, _Record())

    # Waiting.

    async def wait(
        self, worth: Worth, flights: Sequence[Flight], began: float, *, has_room: bool
    ) -> None:
        """Waits for leading positions for as long as that pays, the time since `began` included.

        A source is not to blame where HOST had no room in time.
        """
        patience = Patience(began, worth.compute_seconds, worth.allowed_seconds)
        async for position, flight in _in_order(worth, flights):
            worth.arrived = position
            while not flight.answer.done():
                now = time.monotonic()
                left = patience.seconds_left(now, max(0, position - worth.here))
                if not left:
                    if has_room:
                        self._note_failure(flight.source, now)
                    return
                await asyncio.wait([flight.answer], timeout=left)
            if not flight.answer.result():
                return
        for source in {flight.source for flight in flights}:
            self._record(source.tier).failures = 0
        worth.arrived = worth.count

    def _note_failure(self, source: Source, now: float) -> None:
        record = self._record(source.tier)
        pause = min(_DISTRUST_SECONDS * 2**record.failures, _MOST_DISTRUST_SECONDS)
        record.failures = min(record.failures + 1, 16)
        record.distrusted_until = now + pause
        record.probe_at = now

    # Trying again.

    def found(
        self, namespace: Namespace, keys: BlockKeys, runs: Sequence[Run], compute_seconds: float
    ) -> list[Run]:
        """What a lookup has found, as it may be promised: a tier that broke its word is trusted
        later. Whoever asked will not load what is not worth it, so that is tried here."""
        now = time.monotonic()
        runs = [
            replace(run, ready_after_seconds=run.ready_after_seconds + self._penalty(run.tier, now))
            for run in runs
        ]
        worth = worth_waiting(
            ((run.count, run.ready_after_seconds) for run in runs), compute_seconds
        )
        for run in runs:
            if run.start >= worth and not run.pending:
                for source in self._promotion.sources:
                    if source.tier is run.tier:
                        self._probe(namespace, [keys], keys.position + run.start, source)
                        return runs
        return runs

    def _penalty(self, tier: Tier, now: float) -> float:
        record = self._records.get(tier)
        return max(0.0, record.distrusted_until - now) if record else 0.0

    def distrusted_seconds(self, tier: Tier) -> float:
        """For how long a tier that broke its word is not waited for yet."""
        return self._penalty(tier, time.monotonic())

    def _probe(
        self, namespace: Namespace, entries: Sequence[BlockKeys], position: int, source: Source
    ) -> None:
        """Brings a few blocks from there, unless that was done lately."""
        record = self._record(source.tier)
        if record.is_probing or time.monotonic() < record.probe_at:
            return
        for keys in entries:
            first = position - keys.position
            rest = keys.hashes[max(0, first) :]
            column = self._whereabouts.column(namespace, keys.lane, rest[:1], _EVERYTHING)
            if first >= 0 and column == [PLACES[source.tier]]:
                break
        else:
            return
        slot_bytes = namespace.groups[keys.lane.group].slot_bytes
        count = max(2, min(_PROBE_BLOCKS, _PROBE_BYTES // slot_bytes))
        record.is_probing = True
        self._promotion.spawn(self._try(namespace, keys.lane, rest[:count], source, record))

    async def _try(
        self,
        namespace: Namespace,
        lane: Lane,
        hashes: Sequence[bytes],
        source: Source,
        record: _Record,
    ) -> None:
        """One block, then the others: that tells latency from bandwidth."""
        began = time.monotonic()
        flights: list[Flight] = []
        try:
            for part in (hashes[:1], hashes[1:]):
                expected = self._promotion.arrivals(namespace).add(source, lane, part)
                started = time.monotonic()
                launched = len(flights)
                await self._promotion.start(
                    namespace, BlockKeys(lane, tuple(part)), len(part), flights
                )
                if launched < len(flights):
                    await asyncio.wait([flight.answer for flight in flights[launched:]])
                    if time.monotonic() - started < CAUTION * expected + _HASTE_SECONDS:
                        record.distrusted_until = 0.0  # it keeps its word again
        finally:
            self._promotion.leave(flights)
            record.is_probing = False
            now = time.monotonic()
            pause = min(_PROBE_PAUSE * (now - began), _MOST_PAUSE_SECONDS)
            record.probe_at = now + max(pause, _LEAST_PAUSE_SECONDS)


async def _in_order(worth: Worth, flights: Sequence[Flight]) -> AsyncIterator[tuple[int, Flight]]:
    """Flights with their positions, the first ones first."""
    coming: dict[tuple[Lane, bytes], Flight] = {}
    async for part in data_slices(len(flights), READ_SLICE):
        coming.update(((each.lane, each.block_hash), each) for each in flights[part])
    async for part in data_slices(worth.count, READ_SLICE):
        for position in range(part.start, part.stop):
            for keys in worth.entries:
                for block_hash in worth.part(keys, position, position + 1):
                    flight = coming.get((keys.lane, block_hash))
                    if flight is not None:
                        yield position, flight

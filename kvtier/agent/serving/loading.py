"""Lookup, load and touch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.serving.leasing import Arrived, Leasing
from kvtier.agent.serving.prefetching import Prefetching, Waiter
from kvtier.agent.serving.prospects import Prospects, Worth
from kvtier.agent.serving.whereabouts import PLACES, At, Run, Whereabouts
from kvtier.agent.sessions.grants import Granted, Grants, Guards, release_guards
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.tiers.device import Device
from kvtier.agent.turns import READ_SLICE, slices
from kvtier.core.block import BlockKeys, Lane, Match, Tier, Wait
from kvtier.core.break_even import allowance
from kvtier.core.lease import Lease, LeaseKind

_EVERYTHING = frozenset(Tier)
#: Of what computing takes; more than this is not trusted to be lost on asking.
_LEARNING_SHARE = 0.1


@dataclass(slots=True)
class Found:
    """A lookup's answer for one entry of keys: the leading blocks found, where they are, and which
    of all are present."""

    matched: int
    runs: list[Run]
    presence: list[bool]


class Loading:
    """The reading verbs. Each cuts its batch into slices and lets other work have its turn between
    them; the books are right at every such point. A cancelled call gives back what it took."""

    def __init__(
        self, grants: Grants, promotion: Promotion, prefetching: Prefetching | None = None
    ) -> None:
        self._grants = grants
        self._promotion = promotion
        self.prefetching = prefetching or Prefetching(promotion)
        self._whereabouts = Whereabouts(promotion)
        self._leasing = Leasing(grants, promotion, self.prefetching, self._whereabouts)
        self.on_used = self._leasing.on_used
        self._prospects = Prospects(promotion, self._whereabouts)
        self.distrusted_seconds = self._prospects.distrusted_seconds

    async def lookup(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        *,
        match: Match = Match.PREFIX,
        tiers: frozenset[Tier] = frozenset(),
        shards: Sequence[int] = (),
        hold_seconds: float = 0.0,
        prefetch: bool = False,
    ) -> tuple[list[Found], int]:
        """What is cached, per entry, and the id of the hold (0 if none was asked or granted).

        With `prefetch`, what was found of each prefix is brought to HOST in the background, for as
        long as the hold lasts if there is one.
        """
        tiers, hold, leases = tiers or _EVERYTHING, None, self._grants.leases
        started = leases.now()
        if hold_seconds <= 0:
            answers = await self._find(session, entries, match, tiers, shards, None)
        else:
            with self._grants.granting(LeaseKind.HOLD, session, hold_seconds) as hold:
                answers = await self._find(session, entries, match, tiers, shards, hold)
            hold = hold if leases.is_active(hold) else None
        if prefetch:
            for keys, found in zip(entries, answers, strict=True):
                for shard in shards or [keys.lane.shard]:
                    lane = Lane(keys.lane.group, shard)
                    await self._prefetch(session, lane, keys, found.matched, hold)
        session.namespace.usage.lookups.observe(leases.now() - started)
        return answers, hold.lease_id if hold is not None else 0

    async def _find(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        match: Match,
        tiers: frozenset[Tier],
        shards: Sequence[int],
        hold: Lease | None,
    ) -> list[Found]:
        answers = []
        asked = [
            (lane, keys)
            for keys in entries
            for lane in [Lane(keys.lane.group, shard) for shard in shards] or [keys.lane]
        ]
        if match is Match.PREFIX:
            for lane, keys in asked:
                sought = BlockKeys(lane, keys.hashes, keys.parent, keys.position)
                for _ in session.namespace.asking(sought):
                    await asyncio.sleep(0)
        is_prefix, speed = match is Match.PREFIX, session.compute_seconds_per_block
        await self._learn(session.namespace, asked, tiers, speed, is_prefix=is_prefix)
        for keys in entries:
            lanes = [Lane(keys.lane.group, shard) for shard in shards] or [keys.lane]
            places = await self._places(session, keys, lanes, match, tiers, hold)
            places += [At.NOWHERE] * (len(keys.hashes) - len(places))
            matched = [*places, At.NOWHERE].index(At.NOWHERE)
            runs = self._whereabouts.runs(session.namespace, keys, lanes, places[:matched])
            if is_prefix and speed:
                first = BlockKeys(lanes[0], keys.hashes, keys.parent, keys.position)
                runs = self._prospects.found(session.namespace, first, runs, speed)
            answers.append(Found(matched, runs, [place > 0 for place in places]))
        return answers

    async def _learn(
        self,
        namespace: Namespace,
        asked: Sequence[tuple[Lane, BlockKeys]],
        tiers: frozenset[Tier],
        compute_seconds_per_block: float = 0.0,
        *,
        is_prefix: bool,
    ) -> None:
        """Asks other machines for what they have: all at once, each up to a time of its own, and
        no longer than a share of what computing would take, if that is known."""
        if not self._promotion.has_remote_sources:  # tasks would take turns of the loop
            return
        learn = self._promotion.learn
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_to_learn(asked, compute_seconds_per_block)):
                await asyncio.gather(
                    *(
                        learn(namespace, lane, keys.hashes, tiers, is_prefix=is_prefix)
                        for lane, keys in asked
                    )
                )

    def _patience_to_learn(
        self, asked: Sequence[tuple[Lane, BlockKeys]], compute_seconds_per_block: float
    ) -> float | None:
        """None for as long as they like."""
        if not compute_seconds_per_block:
            return None
        slowest = max((each.seconds_until_learned() for each in self._promotion.sources), default=0)
        blocks = max(len(keys.hashes) for _, keys in asked)
        return allowance(blocks, compute_seconds_per_block, slowest, _LEARNING_SHARE)

    async def _places(
        self,
        session: Session,
        keys: BlockKeys,
        lanes: list[Lane],
        match: Match,
        tiers: frozenset[Tier],
        hold: Lease | None,
    ) -> list[int]:
        """Where each key's block is in the lane that takes longest; NOWHERE if one lane has it not.

        Only up to the first gap if a prefix is asked.
        """
        namespace, where = session.namespace, self._whereabouts
        found: list[int] = []
        in_host = 0
        async for part in slices(len(keys.hashes), READ_SLICE):
            hashes = keys.hashes[part]
            columns = [where.column(namespace, lane, hashes, tiers) for lane in lanes]
            if len(columns) == 1:
                slowest = columns[0]
            else:
                slowest = [max(row) if all(row) else 0 for row in zip(*columns, strict=True)]
            if match is Match.PREFIX and At.NOWHERE in slowest:
                slowest = slowest[: slowest.index(At.NOWHERE)]
            if hold is not None and self._grants.leases.is_active(hold):
                self._hold(session, hold, lanes, hashes, columns, slowest)
            in_host += slowest.count(At.HOST)
            found += slowest
            if len(found) < part.stop:
                break
        host, usage, group = namespace.groups[keys.lane.group], namespace.usage, keys.lane.group
        host.counters.found += in_host
        host.counters.looked_up += len(keys.hashes)
        usage.looked_up(Tier.HOST, group, len(keys.hashes), in_host)
        asked = len(keys.hashes) - in_host
        for source in self._promotion.sources:
            if source.tier in tiers and asked:
                counters = source.counters(namespace, group)
                here = found.count(PLACES[source.tier])
                counters.found += here
                counters.looked_up += asked
                usage.looked_up(source.tier, group, asked, here)
                asked -= here
        return found

    def _hold(
        self,
        session: Session,
        hold: Lease,
        lanes: list[Lane],
        hashes: Sequence[bytes],
        columns: list[list[int]],
        slowest: list[int],
    ) -> None:
        """Keeps the blocks of each lane where every lane has one."""
        tiers = session.namespace.tiers
        for lane, column in zip(lanes, columns, strict=True):
            for tier, wanted in ((Tier.HOST, (At.HOST,)), (Tier.DISK, (At.DISK, At.ON_ITS_WAY))):
                here = [
                    block_hash
                    for block_hash, place, slow in zip(hashes, column, slowest, strict=False)
                    if slow and place in wanted
                ]
                if here and tier in tiers:
                    size_class = tiers[tier][lane.group]
                    rows = [row for row in size_class.find_many(lane, here) if row >= 0]
                    room = self._grants.room(session, size_class)
                    self._grants.refer(size_class, hold, lane, rows[:room], tier)

    async def prefetch(self, session: Session, keys: BlockKeys) -> int:
        """Begins to bring a prefix to HOST; how many leading blocks are there or will be.

        It is no lookup: the worker asks for these blocks when it wants them.
        """
        await self._learn(session.namespace, [(keys.lane, keys)], _EVERYTHING, is_prefix=True)
        return await self._prefetch(session, keys.lane, keys, len(keys.hashes), None)

    async def _prefetch(
        self, session: Session, lane: Lane, keys: BlockKeys, count: int, hold: Lease | None
    ) -> int:
        """How many of the first `count` blocks are or will be in HOST."""
        if not count:
            return 0
        keys = BlockKeys(lane, keys.hashes[:count], keys.parent, keys.position)
        is_waiting = self._waiter(session, hold)
        accepted = await self.prefetching.ask(session.namespace, keys, is_waiting=is_waiting)
        if accepted == count:
            self.prefetching.read_ahead(session.namespace, keys)
        return accepted

    def _waiter(self, session: Session, hold: Lease | None) -> Waiter:
        """A worker waits while it is connected, until its hold ends or it has forgotten."""
        leases, is_patient = self._grants.leases, self.prefetching.patience()
        if hold is None:
            return lambda: session.attachment.connected and is_patient()
        return lambda: session.attachment.connected and leases.is_active(hold)

    async def load(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        *,
        wait: Wait = Wait.ALL,
        patience_seconds: float | None = None,
        stop_at_gap: bool = False,
        ttl_seconds: float = 0.0,
        hold_id: int = 0,
        compute_seconds_per_block: float = 0.0,
        lease_count: int = 0,
        device: Device | None = None,
    ) -> Granted:
        """Leases blocks, after bringing to HOST what is in slower tiers.

        Of what a `device` has a copy of, the copies are leased; the rest may come to it then.

        PENDING is what does not arrive within the wait, of at most `patience_seconds`; REFUSED what
        finds no room in HOST, or what the session may not lease beside what it has.

        With BREAK_EVEN, only leading blocks are leased, of all entries together, and waited for as
        long as `core.break_even` says; what it gives up is not brought in the background, where it
        would be in the way of others. PENDING is what is left in any tier. Of `lease_count`
        positions at most (0: all), the others only count in what is worth it.
        """
        lanes = {keys.lane for keys in entries}
        is_limited = wait is Wait.BREAK_EVEN
        worth = Worth(entries, compute_seconds_per_block, lease_count) if is_limited else None
        started = self._grants.leases.now()
        with self._grants.granting(LeaseKind.LOAD, session, ttl_seconds) as lease:
            granted = Granted(lease)
            guards = self._grants.take_over(session.namespace, hold_id, lanes)
            flights: list[Flight] = []
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience_seconds):
                        if worth is not None:
                            await self._wait_while_worth(session, worth, guards, flights)
                        else:
                            await self._promote(session, entries, guards, flights)
                        if flights and wait is Wait.ALL:
                            await asyncio.wait([flight.answer for flight in flights])
                arrived: Arrived = {
                    (flight.lane, flight.block_hash): flight.source
                    for flight in flights
                    if flight.has_arrived
                }
                for keys in entries:
                    part = keys if worth is None else worth.leading(keys)
                    arrived |= await self._promotion.claim_late(session.namespace, part)
                    stops = stop_at_gap or is_limited
                    await self._leasing.lease(session, part, granted, arrived, device, stops)
                    await self._leasing.leave_out(
                        session.namespace, keys, len(part.hashes), granted
                    )
            finally:
                self._promotion.leave(flights)
                release_guards(guards)
        session.namespace.usage.loads.observe(self._grants.leases.now() - started)
        return granted

    async def _promote(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        guards: Guards,
        flights: list[Flight],
    ) -> None:
        """Begins to bring what HOST has not; keeps what it has of these entries meanwhile."""
        asked = [(keys.lane, keys) for keys in entries]
        await self._learn(session.namespace, asked, _EVERYTHING, is_prefix=False)
        await self._start(session, entries, guards, flights)

    async def _wait_while_worth(
        self, session: Session, worth: Worth, guards: Guards, flights: list[Flight]
    ) -> None:
        """Brings what saves time, and says in `worth` how much of it has come."""
        namespace, entries = session.namespace, worth.entries
        asked = [(keys.lane, keys) for keys in entries]
        await self._learn(namespace, asked, _EVERYTHING, worth.compute_seconds, is_prefix=False)
        await self._prospects.judge(namespace, worth)
        began, has_room = time.monotonic(), False
        with suppress(TimeoutError):  # making room may take too long as well
            async with asyncio.timeout(worth.room_seconds or None):
                for part in worth.parts():
                    await self._start(session, part, guards, flights, goes_on=False)
                has_room = True
        await self._prospects.wait(worth, flights, began, has_room=has_room)

    async def _start(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        guards: Guards,
        flights: list[Flight],
        *,
        goes_on: bool = True,
    ) -> None:
        for keys in entries:
            size_class = session.namespace.groups[keys.lane.group]
            rows = size_class.find_many(keys.lane, keys.hashes)
            if -1 in rows or not goes_on:
                here = [row for row in rows if row >= 0]
                guards.append((size_class, size_class.acquire(here)))
                room = max(0, self._grants.room(session, size_class) - len(here))
                await self._promotion.start(session.namespace, keys, room, flights, goes_on=goes_on)
        for keys in entries:
            self.prefetching.read_ahead(session.namespace, keys)

    async def touch(self, session: Session, keys: BlockKeys) -> None:
        """Marks cached blocks as used."""
        size_class = session.namespace.groups[keys.lane.group]
        async for part in slices(len(keys.hashes), READ_SLICE):
            rows = size_class.find_many(keys.lane, keys.hashes[part])
            self.prefetching.used(session.namespace, keys.lane, keys.hashes[part], rows)
            size_class.touch([row for row in rows if row >= 0])

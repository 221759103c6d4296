"""`agent.serving.prefetching`: loads first, within a budget, and only while wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.job_queue import Kind
from kvtier.agent.serving.prefetching import PrefetchOptions, Purpose
from kvtier.core.block import BlockKeys, Lane, Tier, Wait
from kvtier.core.policies.base import ALWAYS
from kvtier.core.policies.lru import Lru
from kvtier.core.residency import NONE
from kvtier.memory import ByteArray
from tests.unit.agent.disk_agent import (
    OK,
    PAGE,
    PENDING,
    SPEC,
    DiskAgent,
    GatedIO,
    in_time,
    on_loop,
    payload_of,
    sequence,
    until,
)

KEYS = sequence("a", 8)
_HEAD_BYTES = 32


class Diary(GatedIO):
    """Notes which sequences are read and written, in the order in which that begins."""

    def __init__(self, *sequences: str) -> None:
        super().__init__()
        self.order: list[str] = []
        self._names = {
            payload_of(SPEC, Lane(), block_hash)[:_HEAD_BYTES].tobytes(): name
            for name in sequences
            for block_hash in sequence(name, 8).hashes
        }

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        moved = super().read(fd, buffers, offset)
        self._note("read", buffers[0])
        return moved

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        self._note("write", buffers[0])
        return super().write(fd, buffers, offset)

    def _note(self, what: str, buffer: ByteArray | bytes) -> None:
        name = self._names.get(bytes(buffer[:_HEAD_BYTES]))
        if name is not None and f"{what} {name}" not in self.order[-1:]:
            self.order.append(f"{what} {name}")


def set_budget(agent: DiskAgent, **options: float) -> None:
    agent.loading.prefetching.options = PrefetchOptions(**options)  # type: ignore[arg-type]


async def ask(agent: DiskAgent, keys: BlockKeys, worker: str = "") -> int:
    return await in_time(agent.loading.prefetch(agent.session(worker=worker), keys))


async def settled(agent: DiskAgent) -> None:
    await until(lambda: not agent.loading.prefetching.wish_count)
    await agent.quiet()


def wishes(agent: DiskAgent) -> int:
    return agent.loading.prefetching.wish_count


def counts(agent: DiskAgent) -> tuple[int, int, int]:
    unused = agent.host_class().unused
    return unused.brought_count, unused.used_count, unused.wasted_count


async def under_way(agent: DiskAgent, *entries: BlockKeys) -> None:
    """Returns when all of these have set out."""
    host = agent.host_class()
    await until(
        lambda: all(
            agent.promotion.flight(host, keys.lane, block_hash)
            for keys in entries
            for block_hash in keys.hashes
        )
    )


# Priorities.


async def queue_behind_a_read(agent: DiskAgent, io: GatedIO) -> None:
    """One prefetch is in the only thread's hands; others and a write wait behind it."""
    for name in ("first", "second", "third", "load"):
        await agent.store_on_disk(sequence(name, 2))
    io.shut("read", 1)
    for name in ("first", "second", "third"):
        await ask(agent, sequence(name, 2))
        await under_way(agent, sequence(name, 2))
        await until(lambda: io.waiting("read"))
    await agent.store(sequence("stored", 2))
    await until(lambda: agent.volume.queue_depth >= 4)


@on_loop
async def test_a_load_overtakes_prefetches_and_those_overtake_writes(tmp_path: Path) -> None:
    io = Diary("first", "second", "third", "load", "stored")
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        await queue_behind_a_read(agent, io)
        io.order.clear()
        load = asyncio.create_task(agent.load_and_release(sequence("load", 2)))
        await under_way(agent, sequence("load", 2))
        await until(lambda: agent.volume.queue_depth >= 5)
        io.let_pass()
        assert await load == [OK] * 2
        await settled(agent)
        reads = ["read first", "read load", "read second", "read third"]
        assert io.order == [*reads, "write stored"]
        agent.audit()


@on_loop
async def test_a_load_takes_a_prefetch_that_waits_along(tmp_path: Path) -> None:
    io = Diary("first", "second", "third", "load", "stored")
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        await queue_behind_a_read(agent, io)
        io.order.clear()
        before = agent.volume.forecast.seconds_until_read(0)
        load = asyncio.create_task(agent.load_and_release(sequence("third", 2)))
        await until(lambda: agent.volume.forecast.seconds_until_read(0) > before)
        io.let_pass()
        assert await load == [OK] * 2
        await settled(agent)
        assert io.order == ["read first", "read third", "read second", "write stored"]
        assert counts(agent) == (6, 2, 0)
        assert agent.promotion.prefetch_bytes == agent.promotion.ahead_bytes == 0
        agent.audit()


@on_loop
async def test_what_a_load_has_joined_goes_on_when_the_asker_is_gone(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        await agent.store_on_disk(KEYS)
        await agent.store_on_disk(sequence("b", 1))
        io.shut("read", 1)
        await ask(agent, sequence("b", 1))
        await until(lambda: io.waiting("read"))
        await ask(agent, KEYS, worker="other")
        await under_way(agent, KEYS)
        statuses = await agent.load_and_release(KEYS, wait=Wait.BEST_EFFORT)
        assert statuses == [PENDING] * 8
        agent.sessions.disconnect(agent.session(worker="other").attachment)
        await until(lambda: wishes(agent) == 1)
        io.let_pass()
        await until(lambda: all(agent.in_host(KEYS)))
        await settled(agent)
        agent.audit()


# Nobody waits.


@pytest.mark.parametrize("reason", ["session", "hold", "namespace", "time"])
@on_loop
async def test_what_nobody_waits_for_gives_its_slots_back(tmp_path: Path, reason: str) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        await agent.store_on_disk(sequence("b", 1))
        await agent.store_on_disk(KEYS)
        io.shut("read", 1)
        await ask(agent, sequence("b", 1), worker="other")
        await until(lambda: io.waiting("read"))
        set_budget(agent, patience_seconds=0.0 if reason == "time" else 60.0)
        if reason == "hold":
            await agent.loading.lookup(agent.session(), [KEYS], hold_seconds=5, prefetch=True)
        else:
            await ask(agent, KEYS)
        if reason != "time":  # whose time is over before it sets out
            await under_way(agent, KEYS)
            assert agent.host_class().referenced_slots == 9
        renewal = None
        if reason == "session":
            agent.sessions.disconnect(agent.session().attachment)
        elif reason == "hold":
            agent.clock.advance(6)
            agent.grants.expire()
        elif reason == "namespace":
            renewal = asyncio.create_task(agent.upkeep.invalidate(""))
        await until(lambda: agent.host_class().referenced_slots == 1)
        assert agent.volume.queue_depth >= 1, "what has begun goes on"
        io.let_pass()
        if renewal is not None:
            await in_time(renewal)
        await settled(agent)
        assert not any(agent.in_host(KEYS))
        assert agent.disk_class().referenced_slots == 0
        assert agent.promotion.prefetch_bytes == agent.promotion.ahead_bytes == 0
        agent.audit()


@pytest.mark.parametrize(("patient", "count"), [("second", 8), ("third", 4)])
@on_loop
async def test_a_prefetch_goes_on_while_one_of_several_waits(
    tmp_path: Path, patient: str, count: int
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        await agent.store_on_disk(sequence("b", 1))
        await agent.store_on_disk(KEYS)
        io.shut("read", 1)
        await ask(agent, sequence("b", 1))
        await until(lambda: io.waiting("read"))
        for worker in ("first", "second"):
            assert await ask(agent, KEYS, worker=worker) == 8
            await under_way(agent, KEYS)
        # Another that wants only a part, for a wish of its own.
        assert await ask(agent, sequence("a", 4), worker="third") == 4
        for worker in {"first", "second", "third"} - {patient}:
            agent.sessions.disconnect(agent.session(worker=worker).attachment)
        await until(lambda: wishes(agent) == 2)  # it has been looked who waits
        io.let_pass()
        await settled(agent)
        assert all(agent.in_host(KEYS)[:count])
        agent.audit()


# The budget.


@on_loop
async def test_so_much_is_under_way_and_the_rest_waits(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        set_budget(agent, max_in_flight_bytes=3 * PAGE)
        io.shut("read")
        assert await ask(agent, KEYS) == 8
        await until(lambda: agent.promotion.prefetch_bytes == 3 * PAGE)
        assert agent.host_class().referenced_slots == 3
        most, landed = 0, agent.promotion.on_landed

        def watch(flight: object) -> None:
            nonlocal most
            most = max(most, agent.promotion.prefetch_bytes)
            landed(flight)  # type: ignore[arg-type]

        agent.promotion.on_landed = watch
        io.let_pass()
        await settled(agent)
        assert all(agent.in_host(KEYS))
        assert 0 < most <= 3 * PAGE
        agent.audit()


@on_loop
async def test_a_block_larger_than_the_budget_comes_alone(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        set_budget(agent, max_in_flight_bytes=1)
        assert await ask(agent, KEYS) == 8
        await settled(agent)
        assert all(agent.in_host(KEYS))


@on_loop
async def test_beyond_its_share_of_host_a_prefetch_is_refused(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64) as agent:
        for start in range(0, 24, 8):
            await agent.store_on_disk(sequence("a", 8, start=start))
        set_budget(agent, max_share=10 / 64)
        assert await ask(agent, sequence("a", 24)) == 10
        await settled(agent)
        assert sum(agent.in_host(sequence("a", 24))) == 10
        assert await ask(agent, sequence("a", 24)) == 10
        assert await agent.load_and_release(sequence("a", 4)) == [OK] * 4
        assert await ask(agent, sequence("a", 24)) == 14, "what was used makes room"
        await settled(agent)
        assert await agent.load_and_release(sequence("a", 24)) == [OK] * 24, "loads have room"
        assert counts(agent) == (14, 14, 0)


class Precious(Lru):
    """Once it says so, nothing makes way for what does not have to come."""

    newcomer = ALWAYS

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        return self.newcomer

    def victim(self, worth: float = ALWAYS) -> int:
        return super().victim(worth) if worth == ALWAYS else NONE


@pytest.mark.parametrize("newcomer", [ALWAYS, 1.0])
@on_loop
async def test_what_is_worth_more_does_not_make_way(tmp_path: Path, newcomer: float) -> None:
    async with DiskAgent(tmp_path, host_pages=24) as agent:
        host = agent.host_class()
        policy = host.policy = Precious(host, agent.host._context)
        await agent.store_on_disk(KEYS)
        before, number = host.counters.evicted, 0
        while host.counters.evicted == before:
            await agent.store(sequence(f"full {number}", 1))
            await agent.quiet()
            number += 1
            assert number < 100
        before, policy.newcomer = host.counters.evicted, newcomer
        set_budget(agent, max_share=1.0)
        await ask(agent, KEYS)
        await settled(agent)
        if newcomer == ALWAYS:
            assert all(agent.in_host(KEYS))
        else:
            assert not any(agent.in_host(KEYS))
            assert host.counters.evicted == before
        assert await agent.load_and_release(KEYS) == [OK] * 8, "a load has room"
        agent.audit()


@on_loop
async def test_requests_go_before_what_is_only_expected(tmp_path: Path) -> None:
    io = Diary("first", "expected", "asked")
    async with DiskAgent(tmp_path, io=io, depth=1) as agent:
        for name in ("first", "expected", "asked"):
            await agent.store_on_disk(sequence(name, 2))
        set_budget(agent, max_in_flight_bytes=2 * PAGE)
        io.order.clear()
        io.shut("read", 1)
        await ask(agent, sequence("first", 2))
        await until(lambda: io.waiting("read"))
        prefetching, namespace = agent.loading.prefetching, agent.session().namespace
        assert await prefetching.ask(namespace, sequence("expected", 2), Purpose.EXPECTED) == 2
        await ask(agent, sequence("asked", 2))
        io.let_pass()
        await settled(agent)
        assert io.order == ["read first", "read asked", "read expected"]


# Asking.


@on_loop
async def test_a_lookup_prefetches_what_it_found(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        looked_up = agent.disk_class().counters.looked_up
        [found], _ = await agent.loading.lookup(agent.session(), [sequence("a", 12)], prefetch=True)
        assert found.matched == 8
        await settled(agent)
        assert all(agent.in_host(KEYS))
        assert agent.disk_class().counters.looked_up == looked_up + 12
        assert counts(agent) == (8, 0, 0)


@on_loop
async def test_a_lookup_that_does_not_ask_for_it_prefetches_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        await agent.loading.lookup(agent.session(), [KEYS], hold_seconds=5)
        assert not wishes(agent)
        assert not any(agent.in_host(KEYS))


@on_loop
async def test_asking_again_after_an_eviction_brings_it_again(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        for _ in range(3):
            assert await ask(agent, KEYS) == 8
            await until(lambda: all(agent.in_host(KEYS)))
            agent.leave_host(KEYS)
        await settled(agent)
        assert counts(agent) == (24, 0, 24)


@on_loop
async def test_what_is_nowhere_ends_what_is_accepted(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        disk = agent.disk_class()
        disk.forget(disk.find_many(KEYS.lane, KEYS.hashes)[5])
        assert await ask(agent, KEYS) == 5
        assert await ask(agent, sequence("nowhere", 3)) == 0
        await settled(agent)
        assert agent.in_host(KEYS) == [True] * 5 + [False] * 3


# What became of it.


@on_loop
async def test_a_prefetch_counts_as_a_use_of_disk_when_it_is_used(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        keys = [sequence(name, 1) for name in ("old", "new")]
        for each in keys:
            await agent.store_on_disk(each)
        await ask(agent, keys[0])
        await settled(agent)
        disk = agent.disk_class()
        rank = disk.policy.rank
        ranks = [rank(disk.find_many(each.lane, each.hashes)[0]) for each in keys]
        assert ranks == sorted(ranks)
        await agent.loading.touch(agent.session(), keys[0])
        assert counts(agent) == (1, 1, 0)
        ranks = [rank(disk.find_many(each.lane, each.hashes)[0]) for each in keys]
        assert ranks != sorted(ranks)


@on_loop
async def test_what_is_prefetched_is_used_or_wasted_or_waits(tmp_path: Path) -> None:
    """Against a plain model, in a HOST in which it pushes out itself and others."""
    random, names = Random(5), [f"chain {number}" for number in range(12)]
    async with DiskAgent(tmp_path, host_pages=40) as agent:
        set_budget(agent, max_share=0.5)
        for name in names:
            await agent.store_on_disk(sequence(name, 4))
        every = [sequence(name, 4) for name in names]
        waiting: set[bytes] = set()
        brought = used = wasted = 0

        def here() -> set[bytes]:
            return {
                block_hash
                for keys in every
                for block_hash, is_here in zip(keys.hashes, agent.in_host(keys), strict=True)
                if is_here
            }

        start = counts(agent)
        assert start == (0, 0, 0)
        for _ in range(150):
            before, keys = here(), random.choice(every)
            what = random.choice(["prefetch", "prefetch", "load", "touch", "evict"])
            if what == "prefetch":
                await ask(agent, keys)
                await settled(agent)
                brought += len(here() - before)
                waiting |= here() - before
            elif what == "load":
                await agent.load_and_release(keys)
                used += len(waiting & set(keys.hashes))
                waiting -= set(keys.hashes)
            elif what == "touch":
                await agent.loading.touch(agent.session(), keys)
                used += len(waiting & set(keys.hashes))
                waiting -= set(keys.hashes)
            else:
                agent.host_class().evict_one()
            wasted += len(waiting - here())
            waiting &= here()
            assert counts(agent) == (brought, used, wasted)
            assert agent.host_class().unused.count == len(waiting)
            assert len(waiting) <= 20
        assert used > 10 < wasted
        [host, _] = agent.upkeep.stats("")
        assert host.tier is Tier.HOST
        told = (host.prefetched_count, host.prefetch_used_count, host.prefetch_wasted_count)
        assert told == (brought, used, wasted)
        agent.audit()


@pytest.mark.parametrize("is_joined", [False, True])
@on_loop
async def test_what_is_dropped_before_it_is_submitted_never_begins_unless_a_load_joins_it(
    tmp_path: Path, is_joined: bool
) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        flights: list[Flight] = []
        promotion, namespace = agent.promotion, agent.session().namespace
        await promotion.start(namespace, KEYS, 8, flights, kind=Kind.PREFETCH)
        promotion.wish(flights)
        promotion.leave(flights)
        promotion.unwish(flights)
        loads: list[Flight] = []
        if is_joined:  # in the same turn of the loop
            await promotion.start(namespace, KEYS, 8, loads)
        await until(lambda: all(flight.landed for flight in flights))
        promotion.leave(loads)
        await agent.quiet()
        assert agent.in_host(KEYS) == [is_joined] * 8
        assert promotion.prefetch_bytes == promotion.ahead_bytes == 0
        agent.audit()

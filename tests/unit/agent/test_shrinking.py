"""`agent.placing.shrinking` and `resizing`: another capacity, while work goes on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.operating.stats import TierState
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.lease import LeaseKind
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AgentUnavailableError, InvalidRequestError
from kvtier.tiers.arena import HostExtent
from tests.unit.agent.disk_agent import (
    ABSENT,
    MIB,
    OK,
    PAGE,
    DiskAgent,
    GatedIO,
    on_hurried_loop,
    on_loop,
    sequence,
    until,
)

KIB = 1 << 10
SPEC = NamespaceSpec(name="large", block_bytes=(64 * KIB,))
OTHER = NamespaceSpec(name="other", block_bytes=(40 * KIB, 8 * KIB))
HOST_MIB, DISK_MIB = 64, 160
_LONGEST_TURN_SECONDS = 0.25


def du(agent: DiskAgent) -> int:
    """What the file system counts, as `du` does."""
    total = 0
    for mover in agent.disk.movers:
        for path in (mover.storage.path, *mover.storage.path.rglob("*")):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def host_bytes(agent: DiskAgent) -> int:
    """Memory of HOST's extents, as the kernel counts it."""
    return sum(
        extent.populated_slots * extent.slot_bytes
        for each in agent.host.classes
        for extent in each.extents
        if isinstance(extent, HostExtent)
    )


async def reached(agent: DiskAgent, *tiers: Tier) -> None:
    """A smaller capacity is what is allocated, and nothing is shrinking."""
    for tier in tiers:
        placement = agent.placement if tier is Tier.HOST else agent.disk.placement
        await until(lambda placement=placement: not placement.shrinking.is_active)  # type: ignore[misc]
        space = placement.tier.space
        assert space.allocated_bytes <= space.capacity_bytes
        assert not placement.tier.is_shrinking


async def fill(agent: DiskAgent, count: int, spec: NamespaceSpec = SPEC) -> list[BlockKeys]:
    """Sequences of 8 blocks, the coldest first."""
    found = [sequence(f"{spec.name} {number}", 8) for number in range(count)]
    for keys in found:
        await agent.store(keys, spec)
    await agent.quiet()
    return found


def in_host(agent: DiskAgent, every: Iterable[BlockKeys], spec: NamespaceSpec = SPEC) -> list[int]:
    """How many blocks of each sequence HOST has."""
    return [sum(agent.in_host(keys, spec)) for keys in every]


def large_agent(path: Path, **settings: object) -> DiskAgent:
    settings = {"host_pages": HOST_MIB * MIB // PAGE, "disk_bytes": DISK_MIB * MIB, **settings}
    return DiskAgent(path, **settings)  # type: ignore[arg-type]


# Growing.


@on_loop
async def test_what_is_larger_has_room_at_once(tmp_path: Path) -> None:
    async with large_agent(tmp_path, host_pages=4 * MIB // PAGE) as agent:
        await fill(agent, 20)
        assert sum(in_host(agent, (sequence(f"large {number}", 8) for number in range(20)))) < 64
        agent.upkeep.resize(Tier.HOST, 32 * MIB)
        evicted = agent.host_class(SPEC).counters.evicted
        every = await fill(agent, 50)
        assert in_host(agent, every) == [8] * 50
        assert agent.host_class(SPEC).counters.evicted == evicted
        assert 4 * MIB < agent.host.arena.allocated_bytes <= 32 * MIB
        agent.audit()


@on_loop
async def test_disk_grows_in_all_its_volumes(tmp_path: Path) -> None:
    async with large_agent(tmp_path, volumes=2, disk_bytes=16 * MIB) as agent:
        answer = agent.upkeep.resize(Tier.DISK, 96 * MIB)
        assert answer.capacity_bytes == 96 * MIB
        await fill(agent, 120)
        sizes = [mover.storage.allocated_bytes for mover in agent.disk.movers]
        assert min(sizes) > 16 * MIB
        assert max(sizes) <= 48 * MIB
        assert du(agent) <= 96 * MIB


@on_loop
async def test_a_sessions_share_is_of_the_new_capacity(tmp_path: Path) -> None:
    async with large_agent(tmp_path, max_share=0.5) as agent:
        await fill(agent, 4)
        session, size_class = agent.session(SPEC), agent.host_class(SPEC)
        assert agent.grants.room(session, size_class) == HOST_MIB * MIB // 2 // (64 * KIB)
        agent.upkeep.resize(Tier.HOST, 16 * MIB)
        assert agent.grants.room(session, size_class) == 8 * MIB // (64 * KIB)


# Shrinking.


@on_loop
async def test_what_was_used_last_stays_in_host(tmp_path: Path) -> None:
    async with large_agent(tmp_path) as agent:
        for number in range(8, HOST_MIB + 1, 8):  # extents as of a HOST that grew
            agent.upkeep.resize(Tier.HOST, number * MIB)
            await agent.placement.make_room(agent.host_class(SPEC), number * 15)
        every = await fill(agent, 100)
        hot = every[:20]
        for keys in hot:
            assert set(await agent.load_and_release(keys, spec=SPEC)) == {OK}
        before = agent.host.arena.allocated_bytes
        agent.upkeep.resize(Tier.HOST, 24 * MIB)
        await reached(agent, Tier.HOST)
        assert agent.host.arena.allocated_bytes < before
        assert in_host(agent, hot) == [8] * 20
        for keys in every:
            assert set(await agent.load_and_release(keys, spec=SPEC)) == {OK}
        agent.audit()


@on_loop
async def test_extents_larger_than_the_new_capacity_go_too(tmp_path: Path) -> None:
    async with large_agent(tmp_path) as agent:
        await fill(agent, 120)
        smallest = min(each.size_bytes for each in agent.host_class(SPEC).extents)
        largest = max(each.size_bytes for each in agent.host_class(SPEC).extents)
        assert largest > 4 * MIB
        agent.upkeep.resize(Tier.HOST, 4 * MIB)
        agent.upkeep.resize(Tier.DISK, 16 * MIB)
        await reached(agent, Tier.HOST, Tier.DISK)
        assert smallest <= host_bytes(agent) + largest
        assert du(agent) <= 16 * MIB
        every = await fill(agent, 4)
        assert in_host(agent, every) == [8] * 4
        agent.audit()


@on_loop
async def test_a_leased_block_stays_and_its_extent_goes_when_it_is_released(
    tmp_path: Path,
) -> None:
    async with large_agent(tmp_path) as agent:
        every = await fill(agent, 100)
        leased = [await agent.load(keys, spec=SPEC) for keys in every[::10]]
        agent.upkeep.resize(Tier.HOST, 2 * MIB)
        await until(lambda: agent.placement.shrinking.is_waiting)
        for keys, granted in zip(every[::10], leased, strict=True):
            assert in_host(agent, [keys]) == [8]
            agent.judge(granted, [keys], SPEC)
        space = agent.host.arena
        assert space.allocated_bytes > space.capacity_bytes
        for granted in leased:
            agent.grants.release(granted.lease)
        await reached(agent, Tier.HOST)
        agent.audit()


@on_loop
async def test_a_reservation_that_is_committed_meanwhile_does_not_keep_its_extent(
    tmp_path: Path,
) -> None:
    async with large_agent(tmp_path) as agent:
        await fill(agent, 100)
        session, keys = agent.session(SPEC), sequence("late", 8)
        granted = await agent.storing.reserve(session, [keys])
        agent.upkeep.resize(Tier.HOST, 2 * MIB)
        await until(lambda: agent.placement.shrinking.is_waiting)
        await agent.storing.commit(session, granted.lease.lease_id)
        await reached(agent, Tier.HOST)
        assert not agent.leases.of_session(session.session_id)
        agent.audit()


@on_hurried_loop
async def test_an_extent_that_is_kept_for_long_is_not_waited_for(tmp_path: Path) -> None:
    """A worker that stands still keeps one slot; there is enough beside its extent."""
    async with large_agent(tmp_path) as agent:
        for number in range(8, HOST_MIB + 1, 8):
            agent.upkeep.resize(Tier.HOST, number * MIB)
            await agent.placement.make_room(agent.host_class(SPEC), number * 15)
        every = await fill(agent, 100)
        host = agent.host_class(SPEC)
        kept = [await agent.load(keys, spec=SPEC) for keys in every[:3]]
        extents = {
            host.table.extent_of(slot)
            for granted in kept
            for part in granted.lease.parts
            for slot in part.slots
        }
        held = sum(each.size_bytes for each in extents)
        assert held < HOST_MIB * MIB // 2
        agent.upkeep.resize(Tier.HOST, held + 4 * MIB)
        await reached(agent, Tier.HOST)
        assert all(each.kind is LeaseKind.LOAD for each in agent.leases)
        assert extents <= set(host.extents)
        assert not any(each.withheld for each in host.extents)
        agent.audit()


@on_loop
async def test_the_last_of_several_changes_counts(tmp_path: Path) -> None:
    async with large_agent(tmp_path) as agent:
        await fill(agent, 100)
        for size in (4, 48, 2, 60, 8, 30):
            agent.upkeep.resize(Tier.HOST, size * MIB)
            agent.upkeep.resize(Tier.DISK, (size + 20) * MIB)
            for _ in range(Random(size).randrange(40)):
                await asyncio.sleep(0)
        await reached(agent, Tier.HOST, Tier.DISK)
        assert agent.host.arena.capacity_bytes == 30 * MIB
        assert du(agent) <= 50 * MIB
        every = await fill(agent, 10)
        assert in_host(agent, every) == [8] * 10
        agent.audit()


@on_loop
async def test_the_size_that_is_configured_counts_at_the_next_start(tmp_path: Path) -> None:
    async with large_agent(tmp_path, disk_bytes=32 * MIB) as agent:
        agent.upkeep.resize(Tier.DISK, 128 * MIB)
        every = await fill(agent, 140)
        assert du(agent) > 64 * MIB
    async with large_agent(tmp_path, disk_bytes=32 * MIB) as agent:
        assert agent.disk.tier.space.allocated_bytes <= 32 * MIB
        assert du(agent) <= 32 * MIB
        statuses = [await agent.load_and_release(keys, spec=SPEC) for keys in every]
        assert {status for each in statuses for status in each} == {OK, ABSENT}


# What slower tiers are to have.


@pytest.mark.parametrize("policy", [WritePolicy.ON_EVICT, WritePolicy.THROUGH])
@on_loop
async def test_what_leaves_host_is_written_first(tmp_path: Path, policy: WritePolicy) -> None:
    async with large_agent(tmp_path, write_policy=policy, max_in_flight_bytes=MIB) as agent:
        every = [sequence(f"large {number}", 8) for number in range(100)]
        for keys in every:
            await agent.store(keys, SPEC)
        agent.upkeep.resize(Tier.HOST, 4 * MIB)
        await reached(agent, Tier.HOST)
        for keys in every:
            assert set(await agent.load_and_release(keys, spec=SPEC)) == {OK}


@on_loop
async def test_a_flush_keeps_its_promise_while_host_shrinks(tmp_path: Path) -> None:
    io = GatedIO()
    async with large_agent(tmp_path, io=io, write_policy=WritePolicy.AFTER_HITS) as agent:
        every = [sequence(f"large {number}", 8) for number in range(60)]
        for keys in every:
            await agent.store(keys, SPEC)
        io.shut("write")
        flushing = asyncio.create_task(agent.disk.demotion.flush())
        await until(lambda: io.waiting("write"))
        agent.upkeep.resize(Tier.HOST, 2 * MIB)
        io.let_pass()
        await flushing
        await reached(agent, Tier.HOST)
        assert all(all(agent.on_disk(keys, SPEC)) for keys in every)


# DISK in trouble.


@on_loop
async def test_a_full_device_can_be_given_less(tmp_path: Path) -> None:
    io = GatedIO()
    async with large_agent(tmp_path, io=io) as agent:
        await fill(agent, 100)
        io.fail_writes(errno.ENOSPC)
        await agent.store(sequence("more", 8), SPEC)
        await until(lambda: not agent.volume.is_writable)
        agent.upkeep.resize(Tier.DISK, 16 * MIB)
        await reached(agent, Tier.DISK)
        assert du(agent) <= 16 * MIB
        io.heal()
        agent.audit()


@on_loop
async def test_what_cannot_be_told_or_given_back_is_not_resized(tmp_path: Path) -> None:
    io = GatedIO()
    async with large_agent(tmp_path, io=io, is_started=False) as agent:
        with pytest.raises(AgentUnavailableError, match="RECOVERING"):
            agent.upkeep.resize(Tier.DISK, 16 * MIB)
        await agent.disk.recover(agent.namespaces)
        every = await fill(agent, 40)
        agent.volume._turn(type(agent.volume.health)(int(TierState.UNAVAILABLE)), "no answer")
        with pytest.raises(AgentUnavailableError, match=r"UNAVAILABLE: .*: no answer"):
            agent.upkeep.resize(Tier.DISK, 16 * MIB)
        assert agent.upkeep.resize(Tier.DISK, 200 * MIB).capacity_bytes == 200 * MIB
        assert every


@on_hurried_loop
async def test_a_device_that_hangs_meanwhile_is_waited_for(tmp_path: Path) -> None:
    io = GatedIO()
    async with large_agent(tmp_path, io=io, timeout_seconds=2.0) as agent:
        await fill(agent, 100)
        io.shut("write")
        await agent.store(sequence("more", 8), SPEC)
        await until(lambda: io.waiting("write"))
        agent.upkeep.resize(Tier.DISK, 16 * MIB)
        await until(lambda: not agent.volume.is_readable)
        assert agent.disk.placement.shrinking.is_active
        io.let_pass()
        await reached(agent, Tier.DISK)
        assert du(agent) <= 16 * MIB


# What is refused.


@pytest.mark.parametrize(
    ("tier", "size_bytes", "said"),
    [
        (Tier.HOST, MIB - 1, "at least 1 MiB"),
        (Tier.DISK, 31 * MIB, "at least 32 MiB, 16 MiB for each path"),
        (Tier.CLUSTER, MIB, "CLUSTER has no capacity"),
        (Tier.GPU, MIB, "set when the agent starts, in tiers.gpu.devices"),
    ],
)
@on_loop
async def test_a_size_that_is_none_is_refused(
    tmp_path: Path, tier: Tier, size_bytes: int, said: str
) -> None:
    async with large_agent(tmp_path, volumes=2) as agent:
        with pytest.raises(InvalidRequestError, match=said):
            agent.upkeep.resize(tier, size_bytes)
        assert agent.host.arena.capacity_bytes == HOST_MIB * MIB


# All of it at once.


class Load:
    """Stores and loads by chance, every block judged; how often what came."""

    def __init__(self, agent: DiskAgent, seed: int) -> None:
        self.agent = agent
        self.random = Random(seed)
        self.counts = {"stored": 0, "loaded": 0}
        self.is_over = False
        self.longest_turn_seconds = 0.0

    async def run(self) -> None:
        while not self.is_over:
            spec = self.random.choice([SPEC, OTHER])
            lane = type(sequence("x", 1).lane)(self.random.randrange(len(spec.block_bytes)))
            keys = sequence(f"{self.random.randrange(150)}", 8, lane=lane)
            if self.random.random() < 0.5:
                statuses = await self.agent.store(keys, spec)
                self.counts["stored"] += statuses.count(OK)
            else:
                statuses = await self.agent.load_and_release(
                    keys, spec=spec, patience_seconds=self.random.choice([0.0, 0.01, 0.2])
                )
                self.counts["loaded"] += statuses.count(OK)
            await asyncio.sleep(0)

    async def hold(self) -> None:
        """Keeps leases for a while."""
        while not self.is_over:
            keys = sequence(f"{self.random.randrange(150)}", 8)
            granted = await self.agent.load(keys, spec=SPEC)
            await asyncio.sleep(0.05)
            self.agent.judge(granted, [keys], SPEC)
            self.agent.grants.release(granted.lease)


async def resized_under_load(path: Path, seed: int, times: int) -> None:
    random = Random(seed)
    async with large_agent(path, volumes=2, disk_bytes=DISK_MIB * MIB // 2) as agent:
        load = Load(agent, seed)
        workers = [asyncio.create_task(load.run()) for _ in range(4)]
        workers += [asyncio.create_task(load.hold()) for _ in range(2)]
        for _ in range(times):
            await until(lambda: load.counts["stored"] > 300 and load.counts["loaded"] > 300)
            for size in (HOST_MIB // 10, random.randrange(4, 2 * HOST_MIB), HOST_MIB):
                agent.upkeep.resize(Tier.HOST, size * MIB)
                agent.upkeep.resize(Tier.DISK, max(32, 2 * size) * MIB)
                if random.random() < 0.7:
                    await reached(agent, Tier.HOST, Tier.DISK)
                    assert du(agent) <= max(32, 2 * size) * MIB
                before = sum(load.counts.values())
                await until(lambda before=before: sum(load.counts.values()) > before)  # type: ignore[misc]
            load.counts = dict.fromkeys(load.counts, 0)
        load.is_over = True
        await asyncio.gather(*workers)
        await reached(agent, Tier.HOST, Tier.DISK)
        await agent.quiet()
        agent.audit()
        assert not agent.disk.reader.corrupt_count


@on_loop
async def test_a_tenth_and_back_under_load(tmp_path: Path) -> None:
    await resized_under_load(tmp_path, seed=1, times=2)

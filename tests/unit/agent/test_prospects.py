"""Loads that wait for a slower tier no longer than it takes to compute, on a slowed DISK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from kvtier.core.block import BlockKeys, Lane, Wait
from kvtier.core.namespace import NamespaceSpec
from kvtier.testing import FaultyIO
from tests.unit.agent.disk_agent import MIB, OK, PENDING, DiskAgent, on_loop, sequence, until

KIB = 1 << 10
SPEC = NamespaceSpec(name="model", block_bytes=(64 * KIB, 64 * KIB))
BLOCKS = 32
SLOW = [{"bytes_per_second": 1e6}, {"latency_seconds": 1.0}]


@pytest.fixture
def tmp_path(memory_path: Path, request: pytest.FixtureRequest) -> Path:
    """Nothing but what a test asks for slows its DISK."""
    path = memory_path / str(request.node.name)
    path.mkdir()
    return path


@asynccontextmanager
async def slow_disk(path: Path, sequences: int) -> AsyncIterator[tuple[DiskAgent, FaultyIO]]:
    """Sequences 0 to n - 1 are on DISK alone."""
    io = FaultyIO(Random(0))
    async with DiskAgent(path, io=io, host_pages=16 * 800, disk_bytes=64 * MIB) as agent:
        for number in range(sequences):
            await agent.store_on_disk(keys(number), SPEC)
        yield agent, io
        io.heal()


def keys(number: int, count: int = BLOCKS, start: int = 0) -> BlockKeys:
    return sequence(f"sequence {number}", count, start=start)


async def take(
    agent: DiskAgent, number: int, compute_seconds: float, *more: BlockKeys, lease_count: int = 0
) -> tuple[list[int], float]:
    """The statuses, and the seconds that it took."""
    began = time.monotonic()
    statuses = await agent.load_and_release(
        keys(number),
        *more,
        spec=SPEC,
        wait=Wait.BREAK_EVEN,
        compute_seconds_per_block=compute_seconds,
        lease_count=lease_count,
    )
    return statuses, time.monotonic() - began


@on_loop
async def test_a_tier_that_is_fast_enough_is_waited_for(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 2) as (agent, io):
        statuses, _ = await take(agent, 0, 0.5)
        assert statuses == [OK] * BLOCKS
        io.slow_down(latency_seconds=0.05)
        statuses, seconds = await take(agent, 1, 0.5)
        assert statuses == [OK] * BLOCKS
        assert 0.05 < seconds < BLOCKS * 0.5 / 4


@pytest.mark.parametrize("pace", SLOW, ids=str)
@on_loop
async def test_a_tier_that_is_slow_costs_hardly_anything(
    tmp_path: Path, pace: dict[str, float]
) -> None:
    """Neither at first, when nothing is known, nor later, when it is."""
    async with slow_disk(tmp_path, 4) as (agent, io):
        io.slow_down(**pace)
        for number in range(4):
            statuses, seconds = await take(agent, number, 0.03)
            assert statuses == [PENDING] * BLOCKS
            assert seconds < 0.05 * BLOCKS * 0.03 + 0.005


@on_loop
async def test_what_is_given_up_is_not_read(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 1) as (agent, io):
        io.slow_down(latency_seconds=0.2)
        agent.volume.forecast.reading.seconds_per_byte = 1e-7  # small pieces
        before = io.calls["read"]
        statuses, _ = await take(agent, 0, 0.01)
        assert statuses == [PENDING] * BLOCKS
        await until(lambda: not agent.volume.queue_depth)
        assert io.calls["read"] - before <= agent.volume.forecast.depth
        assert agent.host_class(SPEC).referenced_slots == 0


@on_loop
async def test_what_another_waits_for_is_read(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 1) as (agent, io):
        io.slow_down(latency_seconds=0.6)
        agent.volume.forecast.reading.seconds_per_byte = 1e-7  # small pieces
        await agent.load_and_release(keys(0), spec=SPEC, wait=Wait.BEST_EFFORT)
        statuses, seconds = await take(agent, 0, 0.03)
        assert statuses == [PENDING] * BLOCKS
        assert seconds > 0.02  # it has waited, and left
        await until(lambda: all(agent.in_host(keys(0), SPEC)))


@on_loop
async def test_a_long_latency_is_worth_it_for_many_blocks(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 3) as (agent, io):
        io.slow_down(latency_seconds=0.3)
        for _ in range(2):
            await agent.load_and_release(keys(0), spec=SPEC)  # it learns
            agent.leave_host(keys(0), SPEC)
        statuses, seconds = await take(agent, 1, 0.3)
        assert statuses == [OK] * BLOCKS
        assert 0.3 < seconds < 0.6 * BLOCKS * 0.3
        statuses, seconds = await take(agent, 2, 0.005)
        assert statuses == [PENDING] * BLOCKS
        assert seconds < 0.05 * BLOCKS * 0.005 + 0.005


@on_loop
async def test_what_is_loaded_next_counts_in_what_is_worth_it(tmp_path: Path) -> None:
    """A part alone does not pay for the latency; it is leased alone all the same."""
    async with slow_disk(tmp_path, 3) as (agent, io):
        io.slow_down(latency_seconds=0.3)
        for _ in range(2):
            await agent.load_and_release(keys(0), spec=SPEC)  # it learns
            agent.leave_host(keys(0), SPEC)
        statuses, _ = await take(agent, 1, 0.3, lease_count=1)
        assert statuses == [OK] + [PENDING] * (BLOCKS - 1)
        await until(lambda: not agent.volume.queue_depth)
        assert agent.in_host(keys(1), SPEC) == [True] + [False] * (BLOCKS - 1)
        statuses = await agent.load_and_release(
            keys(2, 1), spec=SPEC, wait=Wait.BREAK_EVEN, compute_seconds_per_block=0.3
        )
        assert statuses == [PENDING]


@on_loop
async def test_memory_that_takes_long_to_be_had_is_given_up_as_well(tmp_path: Path) -> None:
    """The tier is not to blame: it is trusted as before."""
    async with slow_disk(tmp_path, 2):
        pass
    async with DiskAgent(tmp_path, host_pages=16 * 800, disk_bytes=64 * MIB) as agent:
        agent.session(SPEC)
        agent.host_work_seconds = 1.0
        for _ in range(2):
            statuses, seconds = await take(agent, 0, 0.03)
            assert OK not in statuses
            assert seconds < 0.5
        agent.host_work_seconds = 0.0
        await agent.placement.make_room(agent.host_class(SPEC), BLOCKS)
        statuses, _ = await take(agent, 0, 0.5)
        assert statuses == [OK] * BLOCKS


@on_loop
async def test_memory_that_takes_a_while_is_expected_to(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 2):
        pass
    async with DiskAgent(tmp_path, host_pages=16 * 800, disk_bytes=64 * MIB) as agent:
        agent.host_work_seconds = 0.1
        session = agent.session(SPEC)
        await agent.placement.make_room(agent.host_class(SPEC), 4)
        [found], _ = await agent.loading.lookup(session, [keys(0)])
        assert found.matched == BLOCKS
        assert found.runs[-1].ready_after_seconds > 0.1
        statuses, seconds = await take(agent, 0, 0.1)
        assert statuses == [OK] * BLOCKS
        assert seconds > 0.1


@on_loop
async def test_what_is_in_host_is_given_at_once(tmp_path: Path) -> None:
    async with slow_disk(tmp_path, 3) as (agent, io):
        await agent.load_and_release(keys(0), spec=SPEC)
        agent.leave_host(keys(0, 20, 12), SPEC)
        io.slow_down(bytes_per_second=1e6)
        for number in (1, 2):
            await take(agent, number, 0.01)  # it learns
        statuses, seconds = await take(agent, 0, 0.03)
        assert statuses == [OK] * 12 + [PENDING] * 20
        assert seconds < 0.05 * BLOCKS * 0.03 + 0.005


@on_loop
async def test_all_lanes_end_together(tmp_path: Path) -> None:
    """A block of one group is of no use without that of the other."""
    other = sequence("other", BLOCKS, lane=Lane(1))
    async with slow_disk(tmp_path, 3) as (agent, io):
        await agent.store_on_disk(other, SPEC)
        statuses, _ = await take(agent, 0, 0.5, other)
        assert statuses == [OK] * 2 * BLOCKS
        agent.leave_host(sequence("other", 20, start=12, lane=Lane(1)), SPEC)
        io.slow_down(bytes_per_second=1e6)
        for number in (1, 2):
            await take(agent, number, 0.01)
        statuses, _ = await take(agent, 0, 0.01, other)
        half = [OK] * 12 + [PENDING] * 20
        assert statuses == half + half


@pytest.mark.parametrize("pace", SLOW, ids=str)
@on_loop
async def test_a_tier_that_becomes_slow_while_it_is_waited_for(
    tmp_path: Path, pace: dict[str, float]
) -> None:
    """No more is lost than a small part; what has come is given."""
    async with slow_disk(tmp_path, 2) as (agent, io):
        await take(agent, 1, 0.02)  # it is known as fast
        io.slow_down(bytes_per_second=20e6)
        agent.volume.forecast.reading.seconds_per_byte = 1e-7  # small pieces
        reads = io.calls["read"]

        async def slow_down_soon() -> None:
            await until(lambda: io.calls["read"] >= reads + 4)
            io.slow_down(**pace)

        watching = asyncio.create_task(slow_down_soon())
        statuses, seconds = await take(agent, 0, 0.04)
        await watching
        count = [*statuses, PENDING].index(PENDING)
        assert count < BLOCKS
        assert statuses[count:] == [PENDING] * (BLOCKS - count)
        assert seconds + (BLOCKS - count) * 0.04 < 1.05 * BLOCKS * 0.04 + 0.01


@on_loop
async def test_a_tier_that_is_fast_again_is_found_out(tmp_path: Path) -> None:
    """By trying a few blocks of what is asked for, now and then."""
    async with slow_disk(tmp_path, 3) as (agent, io):
        io.slow_down(bytes_per_second=5e6)
        for number in (0, 1):
            await take(agent, number, 0.01)
        await until(lambda: not agent.volume.queue_depth)
        statuses, _ = await take(agent, 2, 0.01)
        assert PENDING in statuses
        io.heal()
        deadline = time.monotonic() + 20
        while PENDING in statuses:
            assert time.monotonic() < deadline
            statuses, seconds = await take(agent, 2, 0.01)
            assert seconds < 0.05 * BLOCKS * 0.01 + 0.01 or PENDING not in statuses
            await asyncio.sleep(0.05)


@on_loop
async def test_lookups_find_it_out_too(tmp_path: Path) -> None:
    """Who asks first what is worth it never loads what is not."""
    async with slow_disk(tmp_path, 3) as (agent, io):
        io.slow_down(bytes_per_second=5e6)
        for number in (0, 1):
            await take(agent, number, 0.01)
        await until(lambda: not agent.volume.queue_depth)
        io.heal()
        session = agent.session(SPEC)
        session.compute_seconds_per_block = 0.01
        deadline = time.monotonic() + 20
        seconds = 1.0
        while seconds > BLOCKS * 0.01 / 2:
            assert time.monotonic() < deadline
            [found], _ = await agent.loading.lookup(session, [keys(2)])
            seconds = found.runs[-1].ready_after_seconds
            await asyncio.sleep(0.05)

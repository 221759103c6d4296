"""`agent.serving.loading` where blocks are in HOST, on DISK, and on their way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvtier.agent.moving import late_arrivals
from kvtier.agent.serving.loading import Found
from kvtier.core.block import BlockKeys, Lane, Match, Tier, Wait
from kvtier.core.namespace import NamespaceSpec
from tests.unit.agent.disk_agent import (
    ABSENT,
    OK,
    PAGE,
    PENDING,
    REFUSED,
    SPEC,
    DiskAgent,
    GatedIO,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 8)
SHARDED = NamespaceSpec(name="sharded", block_bytes=(PAGE,), shards=2)
HOST, DISK = Tier.HOST, Tier.DISK


async def lookup(
    agent: DiskAgent, keys: BlockKeys, spec: NamespaceSpec = SPEC, **how: object
) -> Found:
    [found], _ = await agent.loading.lookup(agent.session(spec), [keys], **how)  # type: ignore[arg-type]
    return found


async def hold(agent: DiskAgent, keys: BlockKeys, seconds: float = 5.0) -> int:
    _, hold_id = await agent.loading.lookup(agent.session(), [keys], hold_seconds=seconds)
    return hold_id


def runs(found: Found) -> list[tuple[int, int, Tier, bool]]:
    return [(run.start, run.count, run.tier, run.pending) for run in found.runs]


async def half_in_host(agent: DiskAgent) -> None:
    """The first four are in both tiers, the others on DISK alone."""
    await agent.store_on_disk(KEYS)
    await agent.load_and_release(sequence("a", 4))


async def let_half_come_late(agent: DiskAgent, io: GatedIO) -> None:
    """All are in HOST; the others came when nobody waited."""
    await half_in_host(agent)
    io.shut("read")
    assert PENDING in await agent.load_and_release(KEYS, wait=Wait.BEST_EFFORT)
    io.let_pass()
    await until(lambda: all(agent.in_host(KEYS)))


# Lookups.


@on_loop
async def test_runs_say_where_blocks_are(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        found = await lookup(agent, sequence("a", 12))
        assert runs(found) == [(0, 4, HOST, False), (4, 4, DISK, False)]
        assert found.matched == 8
        assert found.presence == [True] * 8 + [False] * 4
        assert found.runs[0].ready_after_seconds == 0.0 < found.runs[1].ready_after_seconds


@on_loop
async def test_what_is_on_its_way_is_pending(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await half_in_host(agent)
        io.shut("read")
        await agent.load_and_release(sequence("a", 2, start=4), wait=Wait.BEST_EFFORT)
        await until(lambda: agent.volume.queue_depth)
        found = await lookup(agent, KEYS)
        assert runs(found) == [(0, 4, HOST, False), (4, 2, HOST, True), (6, 2, DISK, False)]
        after = [run.ready_after_seconds for run in found.runs]
        assert 0.0 == after[0] < after[1] < after[2]
        io.let_pass()
        await until(lambda: all(agent.in_host(sequence("a", 6))))
        assert runs(await lookup(agent, KEYS)) == [(0, 6, HOST, False), (6, 2, DISK, False)]


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ({HOST}, [(0, 4, HOST, False)]),
        ({DISK}, [(0, 8, DISK, False)]),
        ({HOST, DISK}, [(0, 4, HOST, False), (4, 4, DISK, False)]),
        ({Tier.GPU}, []),
    ],
)
@on_loop
async def test_a_lookup_asks_the_tiers_that_it_names(
    tmp_path: Path, tiers: set[Tier], expected: list[tuple[int, int, Tier, bool]]
) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        assert runs(await lookup(agent, KEYS, tiers=frozenset(tiers))) == expected


@on_loop
async def test_presence_goes_beyond_gaps(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(sequence("a", 2))
        await agent.store(sequence("b", 1))
        mixed = BlockKeys(
            Lane(), (*sequence("a", 1).hashes, *sequence("c", 1).hashes, *sequence("b", 1).hashes)
        )
        found = await lookup(agent, mixed, match=Match.PRESENCE)
        assert found.presence == [True, False, True]
        assert runs(found) == [(0, 1, DISK, False)]
        found = await lookup(agent, mixed)
        assert found.presence == [True, False, False]


@on_loop
async def test_the_slowest_shard_says_where_a_block_is(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        lanes = [sequence("a", 4, lane=Lane(0, shard)) for shard in range(2)]
        for keys in lanes:
            await agent.store_on_disk(keys, SHARDED)
        await agent.load_and_release(lanes[0], spec=SHARDED)
        await agent.load_and_release(sequence("a", 2, lane=Lane(0, 1)), spec=SHARDED)
        found = await lookup(agent, lanes[0], SHARDED, shards=[0, 1])
        assert runs(found) == [(0, 2, HOST, False), (2, 2, DISK, False)]
        assert runs(await lookup(agent, lanes[0], SHARDED)) == [(0, 4, HOST, False)]
        agent.leave_host(lanes[1], SHARDED)
        disk = agent.disk_class(SHARDED)
        disk.forget(disk.find_many(lanes[1].lane, lanes[1].hashes)[3])
        found = await lookup(agent, lanes[0], SHARDED, shards=[0, 1])
        assert found.matched == 3


@on_loop
async def test_lookups_are_counted_by_tier(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        await lookup(agent, sequence("a", 10))
        host, disk = agent.host_class().counters, agent.disk_class().counters
        assert (host.looked_up, host.found) == (10, 4)
        assert (disk.looked_up, disk.found) == (6, 4)


@on_loop
async def test_a_tier_that_is_not_asked_counts_no_lookup(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        await lookup(agent, KEYS, tiers=frozenset({HOST}))
        assert agent.disk_class().counters.looked_up == 0


# Holds.


@on_loop
async def test_a_hold_keeps_blocks_of_disk_until_the_load(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        hold_id = await hold(agent, KEYS)
        disk = agent.disk_class()
        assert disk.referenced_slots == 4
        while disk.evict_one():
            pass
        assert agent.on_disk(KEYS) == [True] * 8  # ends go before beginnings
        assert await agent.load_and_release(KEYS, hold_id=hold_id) == [OK] * 8
        assert disk.referenced_slots == 0
        assert len(agent.leases) == 0
        agent.audit()


@on_loop
async def test_a_hold_of_blocks_of_disk_expires(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert await hold(agent, KEYS, seconds=5)
        agent.clock.advance(4)
        agent.grants.expire()
        assert not agent.disk_class().evict_one()
        agent.clock.advance(2)
        agent.grants.expire()
        assert agent.disk_class().evict_one()
        agent.audit()


@on_loop
async def test_a_hold_ends_with_its_session(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        await hold(agent, KEYS)
        for lease in list(agent.leases):
            agent.grants.revoke(lease)
        assert agent.disk_class().referenced_slots == agent.host_class().referenced_slots == 0


# Loads.


@on_loop
async def test_a_load_says_which_tier_supplied_each_block(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        granted = await agent.load(sequence("a", 10))
        assert granted.statuses == [OK] * 8 + [ABSENT] * 2
        assert granted.sources == [HOST] * 4 + [DISK] * 4 + [0] * 2
        agent.judge(granted, [sequence("a", 10)], SPEC)
        agent.grants.release(granted.lease)
        host, disk = agent.host_class().counters, agent.disk_class().counters
        # The load that brought the first four counts, too.
        assert (host.hits, host.misses, disk.hits) == (4, 2, 4 + 4)
        again = await agent.load(KEYS)
        assert again.sources == [HOST] * 8


@on_loop
async def test_equal_hashes_of_two_lanes_have_their_own_sources(tmp_path: Path) -> None:
    """Shards of a model have blocks of equal hashes, and one call may load several lanes."""
    async with DiskAgent(tmp_path) as agent:
        lanes = [sequence("a", 4, lane=Lane(0, shard)) for shard in range(2)]
        for keys in lanes:
            await agent.store_on_disk(keys, SHARDED)
        await agent.load_and_release(lanes[0], spec=SHARDED)
        granted = await agent.load(*lanes, spec=SHARDED)
        assert granted.sources == [HOST] * 4 + [DISK] * 4


@on_loop
async def test_several_lanes_come_with_one_call(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        lanes = [sequence("a", 4, lane=Lane(0, shard)) for shard in range(2)]
        for keys in lanes:
            await agent.store_on_disk(keys, SHARDED)
        assert await agent.load_and_release(*lanes, spec=SHARDED) == [OK] * 8
        agent.audit()


@on_loop
async def test_best_effort_answers_pending_and_a_later_load_finds_it(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await half_in_host(agent)
        io.shut("read")
        statuses = await agent.load_and_release(KEYS, wait=Wait.BEST_EFFORT)
        assert statuses == [OK] * 4 + [PENDING] * 4
        later = asyncio.create_task(agent.load_and_release(KEYS, wait=Wait.ALL))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not later.done()
        io.let_pass()
        assert await later == [OK] * 8
        await agent.quiet()
        agent.audit()


@on_loop
async def test_what_comes_when_nobody_waits_counts_for_its_tier_once(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await let_half_come_late(agent, io)
        host, disk = agent.host_class().counters, agent.disk_class().counters
        from_host, from_disk = host.hits, disk.hits
        for hits in (4, 12):
            granted = await agent.load(KEYS, wait=Wait.ALL)
            assert granted.sources[:4] == [HOST] * 4
            assert granted.sources[4:] == [DISK if hits == 4 else HOST] * 4
            assert (host.hits - from_host, disk.hits - from_disk) == (hits, 4)


@on_loop
async def test_what_came_and_went_before_it_was_leased_counts_for_nobody(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await let_half_come_late(agent, io)
        agent.leave_host(KEYS)
        await agent.store(KEYS)
        assert (await agent.load(KEYS)).sources == [HOST] * 8


@on_loop
async def test_what_came_long_ago_is_host_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_arrivals, "_KEPT_SECONDS", -1.0)
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await let_half_come_late(agent, io)
        assert (await agent.load(KEYS)).sources == [HOST] * 8


@on_loop
async def test_all_waits_for_as_long_as_it_may(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await half_in_host(agent)
        io.shut("read")
        loop = asyncio.get_running_loop()
        started = loop.time()
        statuses = await agent.load_and_release(KEYS, wait=Wait.ALL, patience_seconds=0.1)
        assert statuses == [OK] * 4 + [PENDING] * 4
        assert loop.time() - started >= 0.1
        io.let_pass()
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_load_that_stops_at_a_gap_leases_nothing_behind_it(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        await agent.load_and_release(sequence("a", 2))
        await agent.store(sequence("a", 2, start=6))
        io.shut("read")
        granted = await agent.load(KEYS, wait=Wait.BEST_EFFORT, stop_at_gap=True)
        assert granted.statuses[:6] == [OK] * 2 + [PENDING] * 4
        assert OK not in granted.statuses[6:]
        assert granted.lease.size_bytes == 2 * PAGE


@on_loop
async def test_a_session_loads_no_more_than_its_share(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64, max_share=0.1) as agent:
        await agent.store_on_disk(sequence("a", 6))
        await agent.store_on_disk(sequence("a", 6, start=6))
        granted = await agent.load(sequence("a", 12))
        assert granted.statuses == [OK] * 6 + [REFUSED] * 6
        agent.judge(granted, [sequence("a", 12)], SPEC)
        assert agent.disk_class().counters.hits == 6


@on_loop
async def test_a_prefetch_brings_the_prefix_and_leases_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await half_in_host(agent)
        assert await agent.loading.prefetch(agent.session(), sequence("a", 12)) == 8
        await until(lambda: all(agent.in_host(KEYS)))
        await agent.quiet()
        assert agent.host_class().referenced_slots == 0
        agent.audit()


@on_loop
async def test_what_host_has_of_a_batch_is_not_evicted_for_the_rest_of_it(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=20) as agent:
        rest = sequence("a", 8, start=8)
        await agent.store_on_disk(KEYS)
        await agent.store_on_disk(rest)
        await agent.load_and_release(KEYS)
        statuses = await agent.load_and_release(sequence("a", 16))
        assert statuses[:8] == [OK] * 8
        assert set(statuses[8:]) <= {OK, REFUSED}
        agent.audit()


@on_loop
async def test_a_load_counts_as_a_use_on_disk(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        old, new = sequence("old", 1), sequence("new", 1)
        await agent.store_on_disk(old)
        await agent.store_on_disk(new)
        await agent.load_and_release(old)
        assert agent.disk_class().evict_one()
        assert agent.on_disk(old) + agent.on_disk(new) == [True, False]

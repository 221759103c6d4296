"""`agent.operating.upkeep`: what an operator asks for is done in all tiers, or said."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from shutil import copytree

import pytest

from kvtier.agent.operating.stats import TierState
from kvtier.agent.operating.upkeep import DrainProgress
from kvtier.agent.placing.evicting import Evicted
from kvtier.agent.tiers.disk import ScrubProgress
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AgentUnavailableError, NotFoundError
from tests.unit.agent.disk_agent import (
    ABSENT,
    PAGE,
    DiskAgent,
    GatedIO,
    on_hurried_loop,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 8)
ALL = frozenset(Tier)
#: Blocks of some batches: of several slices, and all in flight together.
LONG = 1500
HYBRID = NamespaceSpec(name="hybrid", block_bytes=(PAGE, 2 * PAGE))


async def evict(
    agent: DiskAgent,
    keys: BlockKeys | None = None,
    tiers: frozenset[Tier] = ALL,
    *,
    dry_run: bool = False,
) -> Evicted:
    return await agent.upkeep.evict("", lambda _: keys, tiers, dry_run=dry_run)


async def in_both(agent: DiskAgent, keys: BlockKeys = KEYS) -> None:
    await agent.store(keys)
    await until(lambda: all(agent.on_disk(keys)))
    await agent.quiet()


async def write_long(agent: DiskAgent, io: GatedIO) -> None:
    """Many blocks are in HOST, and all of them are being written."""
    disk = agent.disk_class()
    while disk.free_slots < LONG:
        await agent.disk.placement.make_room(disk, LONG)
    io.shut("write")
    await agent.store(sequence("long", LONG))
    await until(lambda: agent.disk.writer.in_flight_bytes == LONG * disk.slot_bytes)
    # Every batch has found room, and waits for its thread.
    await until(lambda: disk.referenced_slots == LONG)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def land_in_the_midst(agent: DiskAgent, io: GatedIO) -> None:
    """When the first blocks have left HOST, the writes end before the next ones leave."""
    host = agent.host_class()
    await until(lambda: len(host.residency) < LONG)
    io.let_pass("write")
    deadline = time.monotonic() + 10
    while sum(int(slab.digests.any(axis=1).sum()) for slab in agent.slabs) < LONG:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # noqa: ASYNC251 - the loop stands still
    assert len(host.residency) > LONG // 2


def as_left_by_a_crash(path: Path) -> Path:
    """A copy of what is on the device now."""
    copytree(path / "volume-0", path / "left" / "volume-0")
    return path / "left"


# Evicting.


@on_loop
async def test_what_is_evicted_is_gone_from_all_tiers_for_good(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        evicted = await evict(agent)
        assert (evicted.gone, evicted.deferred) == (16, 0)
        assert await agent.load_and_release(KEYS) == [ABSENT] * 8
        agent.audit()
    async with DiskAgent(tmp_path) as agent:
        assert len(agent.disk_class().residency) == 0


@on_loop
async def test_keys_take_along_what_continues_them(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        await in_both(agent, sequence("b", 2))
        await evict(agent, sequence("a", 1, start=3))
        assert agent.in_host(KEYS) == agent.on_disk(KEYS) == [True] * 3 + [False] * 5
        assert all(agent.on_disk(sequence("b", 2)))
        agent.audit()
    async with DiskAgent(tmp_path) as agent:
        assert agent.on_disk(KEYS) == [True] * 3 + [False] * 5


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
@on_loop
async def test_one_tier_alone_is_evicted(tmp_path: Path, tier: Tier) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        evicted = await evict(agent, tiers=frozenset({tier}))
        assert evicted.gone == 8
        assert agent.in_host(KEYS) == [tier is Tier.DISK] * 8
        assert agent.on_disk(KEYS) == [tier is Tier.HOST] * 8
        agent.audit()


@on_loop
async def test_a_dry_run_counts_and_changes_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        assert (await evict(agent, dry_run=True)).gone == 16
        assert all(agent.in_host(KEYS) + agent.on_disk(KEYS))


@on_loop
async def test_what_is_leased_is_deferred(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        granted = await agent.load(sequence("a", 3))
        evicted = await evict(agent)
        assert (evicted.gone, evicted.deferred) == (13, 3)
        agent.audit()
        agent.grants.release(granted.lease)
        agent.audit()


@on_loop
async def test_an_eviction_waits_for_recovery(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
    async with DiskAgent(tmp_path, is_started=False) as agent:
        evicting = asyncio.create_task(evict(agent))
        invalidating = asyncio.create_task(agent.upkeep.invalidate(""))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not evicting.done()
        assert not invalidating.done()
        assert (await evict(agent, tiers=frozenset({Tier.HOST}))).gone == 0
        await agent.disk.recover(agent.namespaces)
        assert (await evicting).gone == 8
        assert (await invalidating)[0] == 1
        agent.audit()


@on_loop
async def test_a_record_that_cannot_be_erased_is_said(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await in_both(agent)
        io.fail_writes(errno.EIO)
        with pytest.raises(AgentUnavailableError, match="until the next restart only"):
            await evict(agent)
        assert not any(agent.on_disk(KEYS) + agent.in_host(KEYS))
        io.heal()
        agent.audit()


@on_loop
async def test_slots_of_all_size_classes_are_released_when_one_cannot_be_erased(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        for group in (0, 1):
            keys = sequence("a", 2, lane=type(KEYS.lane)(group))
            await agent.store_on_disk(keys, HYBRID)
        io.fail_writes(errno.EIO, calls=1)
        with pytest.raises(AgentUnavailableError):
            await evict(agent)
        agent.audit()


@on_loop
async def test_what_lands_on_disk_meanwhile_is_evicted_too(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, host_pages=2000, disk_bytes=64 << 20) as agent:
        await write_long(agent, io)
        evicting = asyncio.create_task(evict(agent))
        await land_in_the_midst(agent, io)
        await evicting
        assert len(agent.host_class().residency) == 0
        assert len(agent.disk_class().residency) == 0
        agent.audit()
        left = as_left_by_a_crash(tmp_path)
    async with DiskAgent(left) as agent:
        assert len(agent.disk_class().residency) == 0


@on_loop
async def test_what_continues_a_block_is_found_in_another_tier(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        host, disk = agent.host_class(), agent.disk_class()
        for size_class, forgotten in ((host, (4, 5, 6, 7)), (disk, (0, 1, 2, 3))):
            hashes = [KEYS.hashes[each] for each in forgotten]
            for row in reversed(size_class.find_many(KEYS.lane, hashes)):
                size_class.forget(row)
        await evict(agent, sequence("a", 1, start=2))
        assert agent.in_host(KEYS) == [True] * 2 + [False] * 6
        assert not any(agent.on_disk(KEYS))
        agent.audit()


@on_loop
async def test_what_is_being_moved_is_evicted_for_good(tmp_path: Path) -> None:
    """Its new slot has a record by the time when the move finds it gone."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await in_both(agent)
        await agent.store_on_disk(KEYS, HYBRID)
        disk, taker = agent.disk_class(), agent.disk_class(HYBRID)
        slab = next(each for each in disk.extents if disk.live_slots(each))
        await agent.disk.placement.make_room(disk, slab.slots + 1)
        io.shut("sync")
        agent.disk.placement._start_trade(taker, disk, slab)
        await until(lambda: io.waiting("sync"))
        evicting = asyncio.create_task(evict(agent))
        await until(lambda: not any(agent.on_disk(KEYS)))
        io.let_pass()
        await evicting
        agent.audit()
        left = as_left_by_a_crash(tmp_path)
    async with DiskAgent(left) as agent:
        assert not any(agent.on_disk(KEYS))


# Invalidating.


@on_loop
async def test_an_invalidation_lasts(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        other = NamespaceSpec(name="other", block_bytes=(PAGE,))
        await agent.store_on_disk(KEYS, other)
        generation = agent.session().namespace.generation_id
        assert await agent.upkeep.invalidate("default/model") == (1, 16)
        assert agent.session().namespace.generation_id != generation
        assert await agent.load_and_release(KEYS) == [ABSENT] * 8
        assert all(agent.on_disk(KEYS, other))
        agent.audit()
    async with DiskAgent(tmp_path) as agent:
        assert len(agent.disk_class().residency) == 0
        assert all(agent.on_disk(KEYS, other))


@on_loop
async def test_an_invalidation_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        (tmp_path / "volume-0" / "namespaces.tmp").mkdir()
        with pytest.raises(AgentUnavailableError, match="cannot be kept"):
            await agent.upkeep.invalidate("default/model")
        (tmp_path / "volume-0" / "namespaces.tmp").rmdir()
        assert (await agent.upkeep.invalidate("default/model"))[0] == 1
        assert not any(agent.on_disk(KEYS) + agent.in_host(KEYS))


@on_loop
async def test_what_is_being_written_is_invalidated_too(tmp_path: Path) -> None:
    """A write ends while the blocks of HOST are being forgotten, slice by slice."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, host_pages=2000, disk_bytes=64 << 20) as agent:
        await write_long(agent, io)
        invalidating = asyncio.create_task(agent.upkeep.invalidate(""))
        await land_in_the_midst(agent, io)
        await invalidating
        await agent.quiet()
        assert len(agent.disk_class().residency) == 0


# Draining.


async def drained(agent: DiskAgent, grace_seconds: float) -> list[DrainProgress]:
    return [progress async for progress in agent.upkeep.drain(grace_seconds)]


@on_loop
async def test_a_drain_flushes_and_refuses_work(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        reports = await drained(agent, 5)
        assert reports[-1] == DrainProgress(1, 0, 0, is_done=True)
        assert [each.is_done for each in reports].count(True) == 1
        assert all(agent.on_disk(KEYS))
        assert not any(slab.unsynced for slab in agent.slabs)
        assert agent.ready == [False]
        with pytest.raises(AgentUnavailableError):
            agent.lifecycle.require_serving()
        agent.upkeep.resume()
        agent.lifecycle.require_serving()
        assert agent.ready == [False, True]


@on_loop
async def test_a_drain_waits_for_leases_and_ends_with_them(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        granted = await agent.load(KEYS)
        draining = asyncio.create_task(drained(agent, 60))
        await until(lambda: agent.lifecycle.is_draining)
        agent.grants.release(granted.lease)
        reports = await draining
        assert reports[0].lease_count == 1
        assert reports[-1].lease_count == 0


@on_hurried_loop
async def test_leases_are_revoked_when_the_grace_is_over(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        await agent.load(KEYS)
        reserved = await agent.storing.reserve(agent.session(), [sequence("new", 2)])
        reports = await drained(agent, 0.05)
        assert reports[-1].is_done
        assert reports[-1].lease_count == 0
        assert agent.leases.is_active(reserved.lease) is False
        assert agent.upkeep.stats("")[0].quarantined_bytes == 2 * PAGE


@on_loop
async def test_a_resume_ends_a_drain(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent)
        await agent.load(KEYS)
        draining = asyncio.create_task(drained(agent, 60))
        await until(lambda: agent.lifecycle.is_draining)
        agent.upkeep.resume()
        with pytest.raises(AgentUnavailableError, match="ended by a resume"):
            await draining
        assert len(agent.leases) == 1


@on_loop
async def test_a_drain_that_cannot_flush_says_so(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await in_both(agent)
        io.fail_syncs(errno.EIO)
        with pytest.raises(AgentUnavailableError, match="cannot be flushed"):
            await drained(agent, 0)


@on_loop
async def test_an_agent_that_recovers_is_not_ready_by_a_resume(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, is_started=False) as agent:
        agent.upkeep.resume()
        assert agent.ready == [False]


# Flushing and scrubbing.


@on_loop
async def test_only_disk_is_flushed_and_scrubbed(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        assert await agent.upkeep.flush(Tier.DISK) >= 0
        with pytest.raises(NotFoundError, match="HOST"):
            await agent.upkeep.flush(Tier.HOST)
        with pytest.raises(NotFoundError, match="GPU"):
            await anext(agent.upkeep.scrub(Tier.GPU, 0))


async def scrubbed(agent: DiskAgent, rate_bytes: int = 0) -> list[ScrubProgress]:
    return [progress async for progress in agent.upkeep.scrub(Tier.DISK, rate_bytes)]


@on_loop
async def test_a_scrub_finds_and_drops_what_is_damaged(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        for index in (2, 5):
            agent.spoil(KEYS, index)
        assert await scrubbed(agent) == [ScrubProgress(8, 2, 8 * PAGE, 8, is_done=True)]
        assert [index for index, here in enumerate(agent.on_disk(KEYS)) if not here] == [2, 5]
        assert agent.upkeep.stats("")[1].corrupt_count == 2
        agent.audit()
        assert await scrubbed(agent) == [ScrubProgress(6, 0, 6 * PAGE, 6, is_done=True)]


@on_hurried_loop
async def test_a_scrub_keeps_to_its_rate_and_reports(tmp_path: Path) -> None:
    """Each slab is a step; on this loop a second of waiting takes 25 ms."""
    async with DiskAgent(tmp_path) as agent:
        for number in range(8):
            await agent.store_on_disk(sequence(f"s {number}", 8))
        loop = asyncio.get_running_loop()
        started = loop.time()
        reports = await scrubbed(agent, rate_bytes=64 * PAGE)
        assert loop.time() - started > 0.9
        assert reports[-1] == ScrubProgress(64, 0, 64 * PAGE, 64, is_done=True)
        assert all(a.scanned_count <= b.scanned_count for a, b in zip(reports, reports[1:]))  # noqa: RUF007, B905


@on_loop
async def test_a_scrub_that_is_given_up_keeps_no_slot(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        scrub = asyncio.create_task(scrubbed(agent))
        await until(lambda: io.waiting("read"))
        assert not agent.disk_class().evict_one() or agent.on_disk(KEYS)[0]
        scrub.cancel()
        await asyncio.wait([scrub])
        io.let_pass()
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_scrub_of_a_silent_device_says_so(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        with pytest.raises(AgentUnavailableError, match="cannot be read"):
            await scrubbed(agent)
        io.let_pass()
        await agent.quiet()
        agent.audit()


# Counting.


@on_loop
async def test_stats_tell_of_disk(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, volumes=2) as agent:
        await agent.store_on_disk(KEYS)
        await agent.load_and_release(KEYS)
        host, disk = agent.upkeep.stats("default/model")
        assert (host.tier, disk.tier) == (Tier.HOST, Tier.DISK)
        assert (disk.block_count, disk.used_bytes, disk.leased_bytes) == (8, 8 * PAGE, 0)
        assert (disk.demoted_count, disk.promoted_count, disk.hit_count) == (8, 8, 8)
        assert disk.read_bytes == disk.written_bytes == 8 * PAGE
        assert disk.pending_bytes == disk.queue_depth == disk.error_count == 0
        assert disk.used_bytes < disk.allocated_bytes <= disk.capacity_bytes
        assert (disk.state, disk.reason) == (TierState.ACTIVE, "")


@on_loop
async def test_state_is_the_worst_volume_and_unavailable_is_all_of_them(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, volumes=2, timeout_seconds=0.05) as agent:
        for number, mover in enumerate(agent.disk.movers):
            io.hang()
            with pytest.raises(OSError, match="no answer"):
                await mover.run(mover.storage.probe)
            stats = agent.upkeep.stats("")[1]
            expected = [TierState.DEGRADED, TierState.UNAVAILABLE][number]
            assert stats.state is expected
            assert f"volume-{number}: no answer" in stats.reason
        io.heal()

"""`agent.placing.evicting` and `kvtier.agent.operating.renewals` without CLUSTER: what was
removed does not come back by what was under way meanwhile, nor by a restart."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from kvtier.agent.moving.job_queue import Job, Kind
from kvtier.agent.sessions.grants import Granted
from kvtier.agent.sessions.namespaces import FIRST_GENERATION
from kvtier.core.block import BlockKeys, BlockStatus, Tier
from kvtier.errors import AgentUnavailableError
from kvtier.tiers.arena import cell_of
from tests.unit.agent.disk_agent import (
    ABSENT,
    MIB,
    OK,
    PAGE,
    SPEC,
    DiskAgent,
    GatedIO,
    in_time,
    on_loop,
    payload_of,
    sequence,
    until,
)

EXPIRED = BlockStatus.EXPIRED
KEYS = sequence("a", 8)
#: Of many slices: what removes them lets others have turns.
LONG = sequence("long", 2000)
ROOMY: dict[str, Any] = {"host_pages": 3000, "disk_bytes": 64 * MIB}


async def evict(agent: DiskAgent) -> None:
    everywhere = frozenset(Tier)
    await agent.upkeep.evict(SPEC.label, lambda _: None, everywhere, dry_run=False)


async def invalidate(agent: DiskAgent) -> None:
    await agent.upkeep.invalidate(SPEC.label)


async def in_both(agent: DiskAgent, keys: BlockKeys = KEYS) -> None:
    assert set(await agent.store(keys)) == {OK}
    await until(lambda: all(agent.on_disk(keys)))
    await agent.quiet()


async def nothing_of_it_is_found(agent: DiskAgent, keys: BlockKeys = KEYS) -> None:
    assert not any(agent.in_host(keys))
    assert not any(agent.on_disk(keys))
    assert set(await in_time(agent.load_and_release(keys))) == {ABSENT}


class Ends:
    """Reads that have ended, whether the loop has heard of it or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ended = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._tell = self._loop.call_soon_threadsafe
        monkeypatch.setattr(self._loop, "call_soon_threadsafe", self._heard)

    def _heard(self, callback: Callable[..., object], *args: Any, **options: Any) -> object:
        handle = self._tell(callback, *args, **options)
        if any(isinstance(each, Job) and each.kind is Kind.READ for each in args):
            self._ended.set()
        return handle

    def wait(self) -> None:
        """The loop stands still until the next one ends."""
        self._ended.clear()
        assert self._ended.wait(10.0)


# What is under way.


@pytest.mark.parametrize("remove", [evict, invalidate])
@on_loop
async def test_what_lands_in_host_while_a_namespace_is_removed_is_gone_from_both_tiers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remove: Callable[[DiskAgent], Any],
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, **ROOMY) as agent:
        await in_both(agent, LONG)
        agent.leave_host(LONG)
        last = BlockKeys(LONG.lane, LONG.hashes[-1:], LONG.hashes[-2], 1999)
        io.shut("read")
        loading = asyncio.ensure_future(agent.load_and_release(last))
        await until(lambda: io.waiting("read"))
        removing = asyncio.ensure_future(remove(agent))
        await until(lambda: sum(agent.on_disk(LONG)) < 2000)
        ends = Ends(monkeypatch)
        threading.Timer(0, io.let_pass, ["read"]).start()
        ends.wait()
        assert agent.on_disk(last) == [True]
        await until(lambda: agent.in_host(last) == [True])
        assert not removing.done()
        await in_time(removing)
        assert await in_time(loading) in ([OK], [ABSENT])
        await agent.quiet()
        await nothing_of_it_is_found(agent, LONG)
        agent.audit()


@on_loop
async def test_what_a_trade_moves_while_it_is_written_is_on_disk_when_a_flush_returns(
    tmp_path: Path,
) -> None:
    other = sequence("other", 1)
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        host = agent.host_class()

        def slots() -> list[int]:
            return [*host.slots_of(host.find_many(KEYS.lane, KEYS.hashes))]

        await agent.placement.make_room(host, host.free_slots + 16)
        await in_both(agent, other)
        io.shut("write")
        await agent.store(KEYS)
        await until(lambda: io.waiting("write"))
        before, extent = slots(), host.extents[0]
        agent.placement._start_trade(agent.host.size_class(1000, 2 * PAGE), host, extent)
        await until(lambda: slots() != before and not host.live_slots(extent))
        flushing = asyncio.ensure_future(agent.disk.demotion.flush())
        await asyncio.sleep(0)
        io.let_pass()
        await in_time(flushing)
        assert all(agent.in_host(KEYS))
        assert all(agent.on_disk(KEYS))
        await agent.quiet()
        agent.leave_host(KEYS)
        assert await agent.load_and_release(KEYS) == [OK] * 8


# What fails, or is not waited for.


@pytest.mark.parametrize("made_way", [False, True])
@on_loop
async def test_an_erase_that_failed_is_repeated_by_the_next_eviction(
    tmp_path: Path, made_way: bool
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, probe_seconds=0.1) as agent:
        await agent.store_on_disk(KEYS)
        await agent.disk.demotion.flush()
        disk = agent.disk_class()
        if made_way:  # for others: they are not there, and their records are
            for row in reversed(disk.find_many(KEYS.lane, KEYS.hashes)):
                disk.forget(row)
        io.fail_writes(errno.EIO, calls=1)
        with pytest.raises(AgentUnavailableError, match="DISK"):
            await evict(agent)
        await until(lambda: agent.volume.is_writable)
        await evict(agent)
        await nothing_of_it_is_found(agent)
    async with DiskAgent(tmp_path) as agent:
        await nothing_of_it_is_found(agent)


@on_loop
async def test_an_invalidation_whose_caller_is_cancelled_completes(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, **ROOMY) as agent:
        await in_both(agent, LONG)
        namespace = agent.session().namespace
        invalidating = asyncio.ensure_future(invalidate(agent))
        await until(lambda: namespace.is_renewing)
        invalidating.cancel()
        await asyncio.gather(invalidating, return_exceptions=True)
        await until(lambda: not namespace.is_renewing)
        assert namespace.generation_id > FIRST_GENERATION
        await nothing_of_it_is_found(agent, LONG)
        generation_id = namespace.generation_id
    async with DiskAgent(tmp_path, **ROOMY) as agent:
        assert agent.session().namespace.generation_id == generation_id
        await nothing_of_it_is_found(agent, LONG)


# What is reserved.


async def reserve(agent: DiskAgent, keys: BlockKeys = KEYS) -> Granted:
    """With the bytes that belong to the keys; not committed yet."""
    granted = await agent.storing.reserve(agent.session(), [keys])
    [part] = granted.lease.parts
    for block_hash, slot in zip(keys.hashes, part.slots, strict=True):
        cell = cell_of(agent.host_class().table, slot)
        cell[:PAGE] = payload_of(SPEC, keys.lane, block_hash)
    return granted


async def commit(agent: DiskAgent, granted: Granted, **how: Any) -> list[int]:
    return [*await agent.storing.commit(agent.session(), granted.lease.lease_id, **how)]


@pytest.mark.parametrize("indexes", [(), range(8)])
@on_loop
async def test_what_was_reserved_before_an_invalidation_is_not_committed_after_it(
    tmp_path: Path, indexes: tuple[int, ...]
) -> None:
    async with DiskAgent(tmp_path) as agent:
        granted = await reserve(agent)
        await invalidate(agent)
        assert set(await commit(agent, granted, indexes=indexes)) == {EXPIRED}
        await agent.quiet()
        await nothing_of_it_is_found(agent)
        agent.audit()


@on_loop
async def test_what_is_being_committed_when_it_is_invalidated_is_not_found(tmp_path: Path) -> None:
    """Its bytes are being compared with the worker's digests."""
    async with DiskAgent(tmp_path) as agent:
        granted = await reserve(agent)
        digests = [
            xxhash.xxh3_128_digest(payload_of(SPEC, KEYS.lane, each).data) for each in KEYS.hashes
        ]
        is_open = threading.Event()
        blocking = asyncio.ensure_future(agent.mover.run(is_open.wait, 10.0))
        committing = asyncio.ensure_future(commit(agent, granted, digests=digests))
        await asyncio.sleep(0)
        await in_time(invalidate(agent))
        is_open.set()
        assert set(await in_time(committing)) == {EXPIRED}
        assert await blocking
        await agent.quiet()
        await nothing_of_it_is_found(agent)
        agent.audit()


@on_loop
async def test_what_was_reserved_is_not_committed_after_an_invalidation_that_disk_did_not_keep(
    tmp_path: Path,
) -> None:
    async with DiskAgent(tmp_path) as agent:
        await in_both(agent, sequence("other", 1))
        granted = await reserve(agent)
        (tmp_path / "volume-0" / "namespaces.tmp").mkdir()
        with pytest.raises(AgentUnavailableError, match="cannot be kept"):
            await invalidate(agent)
        (tmp_path / "volume-0" / "namespaces.tmp").rmdir()
        assert agent.session().namespace.generation_id > FIRST_GENERATION
        assert set(await commit(agent, granted)) == {EXPIRED}
        await nothing_of_it_is_found(agent)


@on_loop
async def test_what_is_reserved_after_an_invalidation_is_committed(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        granted = await reserve(agent)
        await invalidate(agent)
        assert set(await commit(agent, granted)) == {EXPIRED}
        assert await agent.store(KEYS) == [OK] * 8
        await agent.disk.demotion.flush()
        agent.leave_host(KEYS)
        assert await agent.load_and_release(KEYS) == [OK] * 8

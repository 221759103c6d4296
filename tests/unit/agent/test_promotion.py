"""`agent.moving.promotion`: a block is read once, and comes whole or not at all."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from kvtier.agent.moving.flight import Flight
from kvtier.core.block import BlockKeys, Tier, Wait
from tests.unit.agent.disk_agent import (
    ABSENT,
    OK,
    PAGE,
    PENDING,
    REFUSED,
    SPEC,
    DiskAgent,
    GatedIO,
    Messages,
    in_time,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 8)


async def start(agent: DiskAgent, keys: BlockKeys, most: int = 1 << 20) -> list[Flight]:
    flights: list[Flight] = []
    await agent.promotion.start(agent.session().namespace, keys, most, flights)
    return flights


async def landed(flights: list[Flight]) -> list[bool]:
    await until(lambda: all(flight.landed for flight in flights))
    return [flight.has_arrived for flight in flights]


@on_loop
async def test_what_is_on_disk_comes_whole(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert await agent.load_and_release(KEYS) == [OK] * 8
        assert agent.disk_class().counters.promoted == 8
        agent.audit()


@on_loop
async def test_two_loads_of_one_block_read_it_once(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        slabs = {agent.place(KEYS, index)[0] for index in range(8)}
        before = io.calls["read"]
        io.shut("read")
        loads = [asyncio.create_task(agent.load_and_release(KEYS)) for _ in range(3)]
        await until(lambda: io.waiting("read"))
        late = asyncio.create_task(agent.load_and_release(sequence("a", 4, start=2)))
        for _ in range(5):
            await asyncio.sleep(0)
        io.let_pass()
        assert [await each for each in loads] == [[OK] * 8] * 3
        assert await late == [OK] * 4
        assert io.calls["read"] == before + len(slabs)
        assert agent.disk_class().counters.promoted == 8
        agent.audit()


@on_loop
async def test_two_loads_that_wait_for_room_read_a_block_once(tmp_path: Path) -> None:
    """HOST has no extent yet; both see that the block is missing, and wait for the first."""
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        slabs, before = len(agent.slabs), io.calls["read"]
        loads = [agent.load_and_release(KEYS) for _ in range(3)]
        assert await in_time(asyncio.gather(*loads)) == [[OK] * 8] * 3
        assert io.calls["read"] == before + slabs
        assert agent.disk_class().counters.promoted == 8
        await agent.quiet()
        agent.audit()


@on_loop
async def test_the_next_promotion_finds_memory_there(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
    async with DiskAgent(tmp_path) as agent:
        assert await agent.load_and_release(KEYS) == [OK] * 8
        host = agent.session().namespace.groups[0]
        await until(lambda: host.free_slots * 4 >= host.extent_bytes // host.slot_bytes)


@on_loop
async def test_blocks_are_read_in_runs_in_the_order_of_position(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("a", 4))
        await agent.store_on_disk(sequence("b", 4))
        before = io.calls["read"]
        flights = await start(agent, BlockKeys(KEYS.lane, tuple(reversed(KEYS.hashes[:4]))))
        assert await landed(flights) == [True] * 4
        assert io.calls["read"] == before + 1
        agent.promotion.leave(flights)


@on_loop
async def test_a_flight_keeps_its_slot_until_all_have_left(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        first, second = await asyncio.gather(start(agent, KEYS), start(agent, KEYS))
        assert await landed(first + second) == [True] * 16
        host = agent.host_class()
        for flights in (first, second):
            assert host.referenced_slots == 8
            assert not host.evict_one()
            agent.promotion.leave(flights)
        assert host.referenced_slots == 0
        agent.audit()


@on_loop
async def test_who_leaves_before_the_landing_leaves_the_block_behind(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        flights = await start(agent, KEYS)
        agent.promotion.leave(flights)
        assert agent.host_class().referenced_slots == 8, "a thread writes there"
        io.let_pass()
        await until(lambda: all(agent.in_host(KEYS)))
        agent.audit()
        assert await agent.load_and_release(KEYS) == [OK] * 8


@on_loop
async def test_a_load_that_is_cancelled_leaves_no_reference(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        load = asyncio.create_task(agent.load(KEYS))
        await until(lambda: io.waiting("read"))
        load.cancel()
        await asyncio.wait([load])
        assert load.cancelled()
        io.let_pass()
        await agent.quiet()
        agent.audit()
        assert all(agent.in_host(KEYS))


@on_loop
async def test_room_smaller_than_the_batch_is_for_its_beginning(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        flights = await start(agent, KEYS, most=3)
        assert await landed(flights) == [True] * 3
        agent.promotion.leave(flights)
        assert agent.in_host(KEYS) == [True] * 3 + [False] * 5
        agent.audit()


@on_loop
async def test_a_batch_larger_than_host_answers_its_beginning(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=16) as agent:
        parts = [sequence("long", 8, start=start) for start in range(0, 40, 8)]
        for part in parts:
            await agent.store_on_disk(part)
        statuses = await agent.load_and_release(sequence("long", 40))
        there = statuses.count(OK)
        assert 8 <= there < 16
        assert statuses == [OK] * there + [REFUSED] * (40 - there)
        agent.audit()


@on_loop
async def test_nothing_comes_where_all_slots_are_leased_and_nothing_waits(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=16) as agent:
        await agent.store_on_disk(KEYS)
        number = 0
        while REFUSED not in await agent.store(sequence(f"full {number}", 1)):
            await agent.load(sequence(f"full {number}", 1))
            number += 1
        assert agent.host_class().free_slots == 0
        assert await agent.load_and_release(KEYS) == [REFUSED] * 8
        await agent.quiet()
        agent.audit()


@on_loop
async def test_what_is_evicted_on_request_while_it_is_read_does_not_come_back(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        load = asyncio.create_task(agent.load_and_release(KEYS))
        await until(lambda: io.waiting("read"))
        await agent.upkeep.evict("", lambda _: KEYS, frozenset(Tier), dry_run=False)
        io.let_pass()
        assert await load == [ABSENT] * 8
        await agent.quiet()
        assert not any(agent.in_host(KEYS) + agent.on_disk(KEYS))
        assert agent.disk_class().counters.promoted == 0
        agent.audit()


@on_loop
async def test_a_block_that_was_stored_meanwhile_is_there_once(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        load = asyncio.create_task(agent.load_and_release(KEYS))
        await until(lambda: io.waiting("read"))
        assert await agent.store(KEYS) == [OK] * 8
        io.let_pass()
        assert await load == [OK] * 8
        await agent.quiet()
        assert agent.disk_class().counters.promoted == 0
        assert len(agent.host_class().residency) == 8
        agent.audit()


@on_loop
async def test_a_damaged_block_is_a_miss_counted_dropped_and_logged_once(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        agent.spoil(KEYS, 3)
        with Messages() as messages:
            statuses = await agent.load_and_release(KEYS)
            assert statuses == [OK] * 3 + [ABSENT] + [OK] * 4
            assert await agent.load_and_release(KEYS) == statuses
        assert messages.about("damaged") == 1
        assert agent.disk.reader.corrupt_count == 1
        assert agent.on_disk(KEYS) == [True] * 3 + [False] + [True] * 4
        agent.audit()


@on_loop
async def test_an_unreadable_block_is_dropped_when_it_is_so_again(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        keys = sequence("a", 1)
        await agent.store_on_disk(keys)
        io.fail_reads(errno.EIO)
        with Messages() as messages:
            assert OK not in await agent.load_and_release(keys)
            assert agent.on_disk(keys) == [True]
            assert OK not in await agent.load_and_release(keys)
        assert agent.on_disk(keys) == [False]
        assert messages.about("unreadable") == 1
        assert agent.disk.reader.unreadable_count == 2
        assert agent.disk.reader.corrupt_count == 0
        agent.audit()


@on_loop
async def test_a_block_that_was_unreadable_once_is_read_when_the_device_is_well(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.fail_reads(errno.EIO)
        assert OK not in await agent.load_and_release(KEYS)
        io.heal()
        assert await agent.load_and_release(KEYS) == [OK] * 8


@on_loop
async def test_one_bad_sector_costs_one_block(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.fail_reads(errno.EIO, calls=2)  # the run, then its first block
        statuses = await agent.load_and_release(KEYS)
        assert statuses[1:] == [OK] * 7
        assert statuses[0] != OK
        agent.audit()


@on_loop
async def test_a_slab_with_much_damage_is_set_aside_with_all_that_is_in_it(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=64 * 1024 * 1024) as agent:
        keys = sequence("long", 8)
        await agent.store_on_disk(keys)
        disk = agent.disk_class()
        while not any(slab.slots >= 16 for slab in agent.slabs):
            await agent.disk.placement.make_room(disk, disk.free_slots + 1)
        keys = sequence("more", disk.free_slots)
        await agent.store_on_disk(keys)
        slab = max(agent.slabs, key=lambda each: each.used_slots)
        mine = [index for index in range(len(keys.hashes)) if agent.place(keys, index)[0] is slab]
        for index in mine[:8]:
            agent.spoil(keys, index)
        with Messages() as messages:
            await agent.load_and_release(keys)
            await until(lambda: slab not in agent.slabs)
            await until(lambda: not slab.data_path.exists())
        assert messages.about("set aside") == 1
        aside = {each.name for each in (slab.volume.path / "aside").iterdir()}
        assert aside == {slab.data_path.name, slab.table_path.name}
        assert not any(agent.on_disk(keys)[index] for index in mine)
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_load_does_not_wait_for_a_device_that_is_silent(tmp_path: Path) -> None:
    """The slots in HOST stay in use until the read has really ended."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        assert OK not in await agent.load_and_release(KEYS)
        assert not agent.volume.is_readable
        assert agent.host_class().referenced_slots == 8
        assert await agent.load_and_release(KEYS) == [ABSENT] * 8
        io.let_pass()
        await agent.quiet()
        agent.audit()


@on_loop
async def test_estimates_grow_with_what_is_asked_and_name_the_slowest_volume(
    tmp_path: Path,
) -> None:
    async with DiskAgent(tmp_path, volumes=2) as agent:
        await agent.store_on_disk(KEYS)
        namespace, reader = agent.session().namespace, agent.disk.reader
        times = [reader.expect(namespace).add(KEYS.lane, KEYS.hashes[:count]) for count in range(9)]
        assert times[0] == 0.0 < times[1]
        assert times == sorted(times)
        assert times[8] < reader.expect(namespace).add(KEYS.lane, KEYS.hashes * 4)


@pytest.mark.parametrize("wait", [Wait.BEST_EFFORT, Wait.ALL])
@on_loop
async def test_what_does_not_come_in_time_is_pending(tmp_path: Path, wait: Wait) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("read")
        statuses = await agent.load_and_release(KEYS, wait=wait, patience_seconds=0.05)
        assert statuses == [PENDING] * 8
        io.let_pass()
        await until(lambda: all(agent.in_host(KEYS)))
        assert await agent.load_and_release(KEYS, wait=Wait.BEST_EFFORT) == [OK] * 8
        agent.audit()


@on_loop
async def test_a_slot_is_one_block_of_its_spec(tmp_path: Path) -> None:
    """Records say how long a block is; the rest of the slot may be anything."""
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        slab, _ = agent.place(KEYS)
        assert slab.slot_bytes == PAGE == SPEC.block_bytes[0]

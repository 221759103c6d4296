"""`agent.moving.demotion` and `disk_writer`: what is written when, and what lasts."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from kvtier.agent.moving import demotion
from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.moving.writer import Taken
from kvtier.agent.placing.evicting import evict
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AgentUnavailableError
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent
from tests.unit.agent.disk_agent import (
    MIB,
    OK,
    PAGE,
    DiskAgent,
    GatedIO,
    in_time,
    on_hurried_loop,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 8)


async def evict_everywhere(agent: DiskAgent) -> None:
    await agent.upkeep.evict("", lambda _: None, frozenset(Tier), dry_run=False)


# Policies.


@on_loop
async def test_through_writes_what_is_stored(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
        assert all(agent.in_host(KEYS))
        assert agent.disk_class().counters.stored == 8
        await agent.quiet()
        assert agent.disk.demotion.waiting_bytes == 0
        agent.audit()


@on_loop
async def test_a_store_of_what_is_there_writes_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        await agent.store(KEYS)
        await agent.quiet()
        assert agent.disk_class().counters.stored == 8


@on_loop
async def test_after_hits_writes_what_was_loaded_as_often(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, write_policy=WritePolicy.AFTER_HITS, after_hits=2) as agent:
        await agent.store(KEYS)
        hot = sequence("a", 3)
        await agent.load_and_release(hot)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        await agent.load_and_release(sequence("a", 2))
        await until(lambda: all(agent.on_disk(sequence("a", 2))))
        await agent.quiet()
        assert agent.on_disk(KEYS) == [True] * 2 + [False] * 6


@on_loop
async def test_hits_of_another_block_in_the_same_row_do_not_count(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, write_policy=WritePolicy.AFTER_HITS, after_hits=2) as agent:
        first, second = sequence("a", 1), sequence("b", 1)
        await agent.store(first)
        await agent.load_and_release(first)
        agent.leave_host(first)
        await agent.store(second)
        await agent.load_and_release(second)
        await agent.quiet()
        assert agent.on_disk(second) == [False]


@on_loop
async def test_on_evict_writes_ahead_of_eviction_and_not_before(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64, write_policy=WritePolicy.ON_EVICT) as agent:
        host = agent.host_class()
        await agent.store(KEYS)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        number = 0
        while not host.counters.evicted:
            await agent.store(sequence(f"fill {number}", 1))
            await agent.quiet()
            number += 1
        # What went was on DISK before: the end of the oldest sequence.
        gone = [not here for here in agent.in_host(KEYS)]
        assert any(gone)
        on_disk = agent.on_disk(KEYS)
        assert all(on_disk[index] for index in range(8) if gone[index])
        assert agent.disk_class().counters.stored < len(host.residency)
        agent.audit()


@on_loop
async def test_groups_and_namespaces_have_slabs_of_their_own(tmp_path: Path) -> None:
    spec = NamespaceSpec(name="hybrid", block_bytes=(3000, 2 * PAGE))
    async with DiskAgent(tmp_path) as agent:
        for group in (0, 1):
            keys = sequence("a", 4, lane=Lane(group))
            await agent.store_on_disk(keys, spec)
            assert await agent.load_and_release(keys, spec=spec) == [OK] * 4
        assert {slab.slot_bytes for slab in agent.slabs} == {PAGE, 2 * PAGE}


# Bounds.


@on_loop
async def test_stores_do_not_wait_for_disk(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        io.shut("allocate")
        for number in range(8):
            assert await in_time(agent.store(sequence(f"s {number}", 4))) == [OK] * 4
        await until(lambda: io.waiting("allocate"))
        assert agent.disk.demotion.waiting_bytes == 32 * PAGE
        io.let_pass()
        await agent.quiet()
        assert all(all(agent.on_disk(sequence(f"s {number}", 4))) for number in range(8))


@on_loop
async def test_a_turn_of_the_loop_begins_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a store asks for: lookups would be behind all of them."""
    monkeypatch.setattr(demotion, "_MOST_BLOCKS", 1)
    async with DiskAgent(tmp_path) as agent:
        turn, begun = 0, []
        write = agent.disk.writer._write

        async def count(host: SizeClass, blocks: list[Taken]) -> None:
            begun.append(turn)
            await write(host, blocks)

        monkeypatch.setattr(agent.disk.writer, "_write", count)
        storing = asyncio.ensure_future(agent.store_on_disk(KEYS))
        while not storing.done():
            turn += 1
            await asyncio.sleep(0)
        assert len(begun) == len(set(begun)) == len(KEYS.hashes)
        await storing
        agent.audit()


@on_loop
async def test_slots_of_host_in_use_are_bounded(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, max_in_flight_bytes=4 * PAGE) as agent:
        io.shut("write")
        await agent.store(sequence("long", 32))
        await until(lambda: io.waiting("write"))
        assert agent.host_class().referenced_slots <= 4


@on_loop
async def test_what_waits_is_written_as_room_is_left(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, max_in_flight_bytes=1) as agent:
        for number in range(16):
            await agent.store(sequence(f"s {number}", 2))
        await agent.quiet()
        assert agent.disk_class().counters.stored == 32


@on_loop
async def test_what_leaves_host_before_its_turn_is_not_written(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, max_in_flight_bytes=1) as agent:
        io.shut("allocate")
        await agent.store(sequence("first", 2))
        await agent.store(KEYS)
        agent.leave_host(KEYS)
        io.let_pass()
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        assert agent.disk.demotion.unwritten_count == 8
        agent.audit()


@on_loop
async def test_what_has_moved_within_host_is_written(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, max_in_flight_bytes=1) as agent:
        io.shut("allocate")
        await agent.store(sequence("first", 2))
        await agent.store(KEYS)
        host = agent.host_class()
        for row in host.find_many(KEYS.lane, KEYS.hashes):
            [target] = host.take(1)
            source = host.residency.slot[row]
            copy = agent.host.space.copying(host, [(row, source, target)])
            assert copy() == [True]
            host.move(row, source, host.table.generations[source], target)
            host.release([target])
        io.let_pass()
        await agent.quiet()
        assert all(agent.on_disk(KEYS))


@on_loop
async def test_what_does_not_fit_into_the_queue_is_found_again(tmp_path: Path) -> None:
    """65,536 may wait: the queue is filled with names of blocks that are gone."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, max_in_flight_bytes=1) as agent:
        io.shut("allocate")
        await agent.store(sequence("first", 1))
        await until(lambda: io.waiting("allocate"))
        await agent.store(sequence("gone", 1))
        host = agent.host_class()
        [slot] = host.slots_of(host.find_many(KEYS.lane, sequence("gone", 1).hashes))
        for _ in range(1 << 8):
            agent.disk.demotion.stored(host, [slot] * (1 << 8))
        agent.leave_host(sequence("gone", 1))
        await agent.store(KEYS)
        assert agent.disk.demotion.waiting_bytes > 65536 * PAGE
        io.let_pass()
        await until(lambda: all(agent.on_disk(KEYS)))
        await agent.quiet()


@on_loop
async def test_disk_smaller_than_host_keeps_what_was_written_last(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=MIB // 2, host_pages=512) as agent:
        for number in range(40):
            await agent.store(sequence(f"s {number}", 8))
            await agent.quiet()
        assert agent.on_disk(sequence("s 39", 8)) == [True] * 8
        assert agent.disk_class().counters.evicted > 0
        agent.audit()


# Eviction on request.


@on_loop
async def test_what_is_evicted_on_request_while_it_is_written_is_erased(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("first", 8))
        io.shut("write", calls=1)
        keys = sequence("second", 2)
        await agent.store(keys)
        await until(lambda: io.waiting("write"))
        evicting = asyncio.create_task(evict_everywhere(agent))
        await until(lambda: not any(agent.in_host(keys)))
        io.let_pass()
        await evicting
        assert not any(agent.on_disk(keys))
        await agent.quiet()
        agent.audit()
    async with DiskAgent(tmp_path) as agent:
        assert len(agent.disk_class().residency) == 0


@on_loop
async def test_who_waits_for_writes_and_gives_up_ends_none_of_them(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("first", 8))
        io.shut("write", calls=1)
        await agent.store(sequence("second", 2))
        await until(lambda: io.waiting("write"))
        waiting = asyncio.create_task(agent.disk.writer.settled())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert agent.disk.writer.batches
        io.let_pass()
        await agent.quiet()
        assert all(agent.on_disk(sequence("second", 2)))
        agent.audit()


@on_loop
async def test_an_eviction_that_is_given_up_at_any_time_leaves_no_slot_in_use(
    tmp_path: Path,
) -> None:
    async with DiskAgent(tmp_path) as agent:
        for turns in range(40):
            await agent.store_on_disk(sequence(f"{turns}", 8))
            evicting = asyncio.create_task(evict_everywhere(agent))
            for _ in range(turns):
                await asyncio.sleep(0)
            evicting.cancel()
            await asyncio.wait([evicting])
            await agent.quiet()
            await until(lambda: not agent.disk_class().referenced_slots)
        agent.audit()


@on_loop
async def test_an_eviction_that_cannot_erase_what_was_being_written_says_so(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        keys = sequence("a", 2)
        await agent.store_on_disk(sequence("first", 2))
        io.shut("write", calls=2)  # payload, record
        await agent.store(keys)
        await until(lambda: io.waiting("write"))
        evicting = asyncio.create_task(
            agent.upkeep.evict("", lambda _: keys, frozenset(Tier), dry_run=False)
        )
        await until(lambda: not any(agent.in_host(keys)))
        io.fail_syncs(errno.EIO)
        while not evicting.done():
            io.let_pass()
            await asyncio.sleep(0)
        with pytest.raises(AgentUnavailableError, match="next restart"):
            await evicting


# Flushing.


@on_loop
async def test_a_flush_returns_when_what_was_stored_before_is_on_disk(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, write_policy=WritePolicy.AFTER_HITS) as agent:
        await agent.store(KEYS)
        io.shut("write")
        flush = asyncio.create_task(agent.disk.demotion.flush())
        await until(lambda: io.waiting("write"))
        assert not flush.done()
        syncs = io.calls["sync"]
        io.let_pass()
        assert await flush == 8 * PAGE
        assert all(agent.on_disk(KEYS))
        assert not any(slab.unsynced for slab in agent.slabs)
        assert io.calls["sync"] > syncs
        assert await agent.disk.demotion.flush() == 0


@on_loop
async def test_a_flush_syncs_what_was_written_before_it(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        dirty = [slab for slab in agent.slabs if slab.unsynced]
        syncs = io.calls["sync"]
        await agent.disk.demotion.flush()
        assert io.calls["sync"] == syncs + 2 * len(dirty) > syncs


@on_hurried_loop
async def test_a_flush_of_a_degraded_volume_raises(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.fail_writes(errno.EIO)
        await agent.store(sequence("b", 2))
        await until(lambda: not agent.volume.is_writable)
        with pytest.raises(OSError, match=r"volume-0: Input/output error"):
            await agent.disk.demotion.flush()


@on_loop
async def test_a_flush_raises_when_a_write_fails_under_it(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, write_policy=WritePolicy.AFTER_HITS) as agent:
        await agent.store(KEYS)
        io.fail_writes(errno.EIO)
        with pytest.raises(OSError):  # noqa: PT011
            await agent.disk.demotion.flush()
        assert not any(agent.on_disk(KEYS))
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_sync_that_fails_forgets_what_was_at_stake_and_nothing_else(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        safe = sequence("safe", 2)
        await agent.store_on_disk(safe)
        await agent.disk.demotion.flush()
        lost = sequence("lost", 2)
        await agent.store_on_disk(lost)
        assert agent.place(safe)[0] is agent.place(lost)[0]
        io.fail_syncs(errno.EIO, calls=1)
        with pytest.raises(OSError, match="Input/output"):
            await agent.disk.demotion.flush()
        assert agent.on_disk(safe) == [True] * 2
        assert agent.on_disk(lost) == [False] * 2
        agent.audit()


@on_loop
async def test_no_flush_returns_before_the_sync_of_another(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("sync")
        first = asyncio.create_task(agent.disk.demotion.flush())
        await until(lambda: io.waiting("sync"))
        second = asyncio.create_task(agent.disk.demotion.flush())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not second.done()
        io.let_pass()
        await asyncio.gather(first, second)


@on_loop
async def test_a_flush_that_is_cancelled_makes_nothing_durable(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(KEYS)
        io.shut("sync")
        first = asyncio.create_task(agent.disk.demotion.flush())
        await until(lambda: io.waiting("sync"))
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(agent.disk.demotion.flush())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not second.done()
        io.let_pass()
        await second


@on_loop
async def test_a_flush_does_not_wait_for_a_device_that_hangs(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5, max_in_flight_bytes=1) as agent:
        await agent.store_on_disk(sequence("first", 1))
        io.shut("write")
        await agent.store(sequence("second", 1))
        await until(lambda: io.waiting("write"))
        flush = asyncio.create_task(agent.disk.demotion.flush())
        await asyncio.wait([flush], timeout=2)
        try:
            assert flush.done()
            assert isinstance(flush.exception(), OSError)
        finally:
            io.let_pass()
            await asyncio.wait([flush])
            flush.exception()


# Bad devices.


@on_hurried_loop
async def test_what_failed_is_written_when_the_device_is_good_again(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("first", 1))
        io.fail_writes(errno.EIO)
        await agent.store(KEYS)
        await until(lambda: not agent.volume.is_writable)
        io.heal()
        await until(lambda: agent.volume.is_writable)
        await until(lambda: all(agent.on_disk(KEYS)), seconds=0.5)


@on_hurried_loop
async def test_what_was_stored_meanwhile_is_written_when_the_device_is_good_again(
    tmp_path: Path,
) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("first", 1))
        io.fail_writes(errno.EIO)
        await agent.store(sequence("second", 1))
        await until(lambda: not agent.volume.is_writable)
        assert await agent.store(KEYS) == [OK] * 8
        io.heal()
        await until(lambda: all(agent.on_disk(KEYS)))
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_write_that_hangs_keeps_its_slots_until_it_ends(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5) as agent:
        await agent.store_on_disk(sequence("first", 1))
        io.shut("write")
        await agent.store(sequence("b", 2))
        await until(lambda: not agent.volume.is_readable)
        await agent.disk.writer.settled()
        assert agent.host_class().referenced_slots == 2
        assert agent.disk_class().referenced_slots == 2
        io.let_pass()
        await agent.quiet()
        assert agent.on_disk(sequence("b", 2)) == [True] * 2, "it was written after all"
        agent.audit()


@on_loop
async def test_a_namespace_that_cannot_be_written_down_has_no_block_on_disk(
    tmp_path: Path,
) -> None:
    async with DiskAgent(tmp_path) as agent:
        (tmp_path / "volume-0" / "namespaces.tmp").mkdir()
        await agent.store(KEYS)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        agent.audit()
        (tmp_path / "volume-0" / "namespaces.tmp").rmdir()
        await agent.disk.demotion.flush()
        assert all(agent.on_disk(KEYS))


# Slabs that are taken from one class for another.


SMALL, LARGE = (
    NamespaceSpec(name="small", block_bytes=(PAGE,)),
    NamespaceSpec(name="large", block_bytes=(4 * PAGE,)),
)


async def fill_disk(agent: DiskAgent, spec: NamespaceSpec) -> None:
    number = 0
    while not agent.disk_class(spec).counters.evicted:
        await agent.store(sequence(f"{spec.name} {number}", 4), spec)
        await agent.quiet()
        number += 1


def retired(agent: DiskAgent) -> list[Extent]:
    found: list[Extent] = []
    agent.disk.placement.on_retired = found.append
    return found


@on_loop
async def test_blocks_move_whole_out_of_a_slab_that_is_taken(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=MIB, host_pages=1024) as agent:
        await fill_disk(agent, SMALL)
        gone = retired(agent)
        number = 0
        while not gone:
            await agent.store(sequence(f"large {number}", 2), LARGE)
            await agent.quiet()
            number += 1
        await evict(agent.session(SMALL).namespace, None, frozenset({Tier.HOST}))
        small = agent.disk_class(SMALL)
        there = [row for row in range(small.residency.row_count) if small.residency.slot[row] >= 0]
        assert there
        for number in range(1000):
            keys = sequence(f"small {number}", 4)
            on_disk = agent.on_disk(keys, SMALL)
            if any(on_disk):
                statuses = await agent.load_and_release(keys, spec=SMALL)
                assert [each == OK for each in statuses] == on_disk
            elif number > 200:
                break
        agent.audit()


@on_loop
async def test_a_flush_syncs_what_has_moved(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=MIB, host_pages=1024) as agent:
        await fill_disk(agent, SMALL)
        await agent.disk.demotion.flush()
        small = agent.disk_class(SMALL)
        before = {row: small.residency.slot[row] for row in range(small.residency.row_count)}
        gone = retired(agent)
        number = 0
        while not gone:
            await agent.store(sequence(f"large {number}", 2), LARGE)
            await agent.quiet()
            number += 1
        slots = small.residency.slot
        moved = [slots[row] for row, slot in before.items() if slots[row] not in (slot, -1)]
        assert moved
        for slot in moved:
            extent = small.table.extent_of(slot)
            [slab] = [each for each in agent.slabs if each is extent]
            assert slot - slab.base in slab.unsynced


@on_loop
async def test_slots_of_a_move_stay_in_use_until_it_has_ended(tmp_path: Path) -> None:
    """Else it writes over other blocks, digests and records included, when the device answers."""
    io = GatedIO()
    async with DiskAgent(
        tmp_path, io=io, disk_bytes=MIB, host_pages=1024, timeout_seconds=0.5
    ) as agent:
        await fill_disk(agent, SMALL)
        small, number = agent.disk_class(SMALL), 0
        io.shut("read", calls=1)
        while not io.waiting("read"):
            await agent.store(sequence(f"large {number}", 2), LARGE)
            await until(lambda: io.waiting("read") or not agent.disk.demotion.waiting_bytes)
            number += 1
        await until(lambda: not agent.volume.is_readable)
        for _ in range(20):
            await asyncio.sleep(0)
        in_use = small.referenced_slots
        io.let_pass()
        await until(lambda: not agent.volume.queue_depth)
        assert in_use > 0
        await until(lambda: not small.referenced_slots)


@on_loop
async def test_a_slab_is_not_made_twice_at_a_time(tmp_path: Path) -> None:
    """The late attempt finds the files of the other, fails, and removes what is in use by then."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5) as agent:
        io.shut("allocate", calls=1)
        await agent.store(KEYS)
        await until(lambda: not agent.volume.is_readable)
        for _ in range(20):
            await asyncio.sleep(0)
        assert io.waiting("allocate")
        populating = [slab.populating for slab in agent.slabs]
        io.let_pass()
        await until(lambda: not agent.volume.queue_depth)
        assert populating == [True]


# Admission.


async def _ask(agent: DiskAgent, keys: BlockKeys) -> None:
    """Another request looks for these blocks, and loads what is here."""
    agent.session().namespace.ask(keys)
    await agent.load_and_release(keys)


@on_loop
async def test_what_is_not_admitted_is_no_failure_of_a_flush(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, admission="second_hit") as agent:
        await agent.store(KEYS)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        before = agent.disk_class().counters.unadmitted
        assert before == 8
        assert await in_time(agent.disk.demotion.flush()) == 0
        assert agent.disk_class().counters.unadmitted == 16
        assert agent.disk.writer.failed_count == 0
        agent.audit()


@on_loop
async def test_what_was_asked_for_twice_is_written_when_it_is_used(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, admission="second_hit") as agent:
        await _ask(agent, KEYS)
        await agent.store(KEYS)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        await _ask(agent, sequence("a", 6))
        await until(lambda: agent.on_disk(KEYS) == [True] * 6 + [False] * 2)
        agent.audit()


@on_loop
async def test_what_continues_a_refused_block_is_refused(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, admission="second_hit") as agent:
        policy = agent.disk_class().policy
        session = agent.session()
        for count in (8, 7):
            keys = sequence("a", count)
            session.namespace.ask(BlockKeys(keys.lane, keys.hashes[3:], keys.hashes[2], 3))
        assert policy.worth(KEYS.lane, KEYS.hashes[4], -1) > 0
        await agent.store(KEYS)
        await agent.quiet()
        assert not any(agent.on_disk(KEYS))
        assert agent.disk_class().counters.unadmitted == 8
        agent.audit()


@on_loop
async def test_bytes_written_count_for_the_day(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
        await agent.quiet()
        stats = agent.upkeep.stats("")[1]
        assert stats.written_last_day_bytes == stats.written_bytes > 0

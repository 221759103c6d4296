"""`agent.tiers.recovery`: what an earlier run left is found, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kvtier.agent.moving.storage_mover import Kind
from kvtier.agent.operating.stats import TierState
from kvtier.core.block import BlockKey, BlockKeys, Tier, Wait
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.tiers.disk.format import MAX_SEQUENCE
from kvtier.tiers.disk.slab import Filling, Slab
from tests.unit.agent.disk_agent import (
    ABSENT,
    MIB,
    OK,
    PAGE,
    SPEC,
    DiskAgent,
    GatedIO,
    Messages,
    in_time,
    on_loop,
    payload_of,
    sequence,
    until,
)

KEYS = sequence("a", 8)


def aligned(size_bytes: int) -> ByteArray:
    memory = np.zeros(size_bytes + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size_bytes]


async def write_by_hand(
    agent: DiskAgent,
    slab: Slab,
    keys: BlockKeys,
    places: dict[int, tuple[int, int]],
    *,
    length: int = PAGE,
    spec: NamespaceSpec = SPEC,
) -> None:
    """Blocks of some keys: index to slot and sequence; no book of the agent knows of them."""
    fillings = []
    for index, (slot, number) in places.items():
        cell = aligned(slab.slot_bytes)
        block_hash = keys.hashes[index]
        cell[: spec.block_bytes[0]] = payload_of(spec, keys.lane, block_hash)
        parent = keys.hashes[index - 1] if index else keys.parent
        key = BlockKey(keys.lane, block_hash, parent, keys.position + index)
        fillings.append(Filling(slot, number, cell, length, key))
    identity = agent.disk.tier.slabs.tenancy(agent.disk_class(spec)).identity
    await agent.volume.run(slab.store, identity, fillings, kind=Kind.WRITE)


async def bare_slab(agent: DiskAgent, slots: int = 8) -> Slab:
    """An empty slab of a known namespace, the only one."""
    await agent.store_on_disk(sequence("first", 1))
    disk = agent.disk_class()
    while disk.free_slots < slots - 1 or not any(each.slots >= slots for each in agent.slabs):
        await agent.disk.placement.make_room(disk, disk.free_slots + 1)
    await agent.upkeep.evict("", lambda _: None, frozenset(Tier), dry_run=False)
    return max(agent.slabs, key=lambda each: each.slots)


@on_loop
async def test_what_was_written_is_there_again_and_whole(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, volumes=2) as agent:
        await agent.store_on_disk(KEYS)
        await agent.store_on_disk(sequence("b", 8))
    async with DiskAgent(tmp_path, volumes=2) as agent:
        for name in ("a", "b"):
            assert await agent.load_and_release(sequence(name, 8)) == [OK] * 8
        agent.audit()


@on_loop
async def test_a_stop_flushes(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
    async with DiskAgent(tmp_path) as agent:
        assert await agent.load_and_release(KEYS) == [OK] * 8


@on_loop
async def test_sequences_go_on_after_the_greatest(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        slab = await bare_slab(agent)
        await write_by_hand(agent, slab, KEYS, {0: (0, 1000), 1: (1, 77)})
    async with DiskAgent(tmp_path) as agent:
        assert agent.disk.tier.next_generation() == 1001


@on_loop
async def test_of_two_records_of_a_key_the_newer_counts(tmp_path: Path) -> None:
    """In either order of the slots, beside a block that is older than both."""
    async with DiskAgent(tmp_path) as agent:
        slab = await bare_slab(agent)
        await write_by_hand(agent, slab, KEYS, {7: (7, 50)})
        await write_by_hand(agent, slab, KEYS, {0: (0, 100), 1: (1, 201)})
        await write_by_hand(agent, slab, KEYS, {0: (2, 200), 1: (3, 101)})
    async with DiskAgent(tmp_path) as agent:
        assert agent.on_disk(KEYS) == [True, True, *[False] * 5, True]
        assert [agent.place(KEYS, index)[1] for index in (0, 1)] == [2, 1]
        disk = agent.disk_class()
        assert disk.used_slots == 3
        assert await agent.load_and_release(sequence("a", 2)) == [OK] * 2
        agent.audit()


@on_loop
async def test_a_slab_that_begins_with_two_records_of_a_key_is_kept(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        slab = await bare_slab(agent)
        await write_by_hand(agent, slab, KEYS, {0: (0, 100), 2: (2, 300), 3: (3, 301)})
        await write_by_hand(agent, slab, KEYS, {0: (1, 200)})
        path = slab.data_path
    async with DiskAgent(tmp_path) as agent:
        await agent.quiet()
        assert path.exists()
        assert agent.on_disk(sequence("a", 4)) == [True, False, True, True]
        assert agent.place(KEYS, 0)[1] == 1
        agent.audit()


@on_loop
async def test_the_newer_of_two_slabs_counts_in_whatever_order_they_are_read(
    tmp_path: Path,
) -> None:
    async with DiskAgent(tmp_path) as agent:
        last = await bare_slab(agent)
        first = min(agent.slabs, key=lambda each: each.slots)
        await write_by_hand(agent, last, KEYS, {0: (0, 100), 1: (1, 201), 2: (2, 50)})
        await write_by_hand(agent, first, KEYS, {0: (0, 200), 1: (1, 101), 3: (2, 50)})
        ids = [first.header.slab_id, last.header.slab_id]
    async with DiskAgent(tmp_path) as agent:
        places = [agent.place(KEYS, index)[0].header.slab_id for index in (0, 1)]
        assert places == ids
        agent.audit()


async def adopted_order(tmp_path: Path, *, in_one_slab: bool) -> list[int]:
    """The indexes of blocks without parents in the order in which they go; 0 is the oldest."""
    singles = [sequence(f"single {number}", 1) for number in range(6)]
    async with DiskAgent(tmp_path) as agent:
        last = await bare_slab(agent)
        first = min(agent.slabs, key=lambda each: each.slots)
        assert first is not last
        # By slot the youngest is first; the older half may lie in the slab that was written first.
        for number, keys in enumerate(singles):
            slab = last if in_one_slab or number >= 3 else first
            slot = 5 - number if in_one_slab else 2 - number % 3
            await write_by_hand(agent, slab, keys, {0: (slot, 100 + number)})
        tables = [first.table_path, last.table_path]
    for second, path in enumerate(tables, 1):
        os.utime(path, (second, second))
    async with DiskAgent(tmp_path) as agent:
        disk, order = agent.disk_class(), list[int]()
        hashes = [each.hashes[0] for each in singles]
        assert len(disk.residency) == 6
        while (row := disk.policy.victim()) >= 0:
            order.append(hashes.index(disk.residency.describe(row)[1]))
            disk.forget(row)
    return order


@on_loop
async def test_within_a_slab_the_oldest_goes_first(tmp_path: Path) -> None:
    assert await adopted_order(tmp_path, in_one_slab=True) == list(range(6))


@on_loop
async def test_across_slabs_the_oldest_goes_first(tmp_path: Path) -> None:
    assert await adopted_order(tmp_path, in_one_slab=False) == list(range(6))


@on_loop
async def test_lengths_that_do_not_fit_the_spec_are_ignored(tmp_path: Path) -> None:
    spec = NamespaceSpec(name="short", block_bytes=(3000,))
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS, spec)
        slab, slot = agent.place(KEYS, 0, spec)
        disk = agent.disk_class(spec)
        [disk_slot] = disk.slots_of(disk.find_many(KEYS.lane, KEYS.hashes[:1]))
        number = disk.table.generations[disk_slot]
        await write_by_hand(agent, slab, KEYS, {0: (slot, number)}, length=2999, spec=spec)
    async with DiskAgent(tmp_path) as agent:
        assert agent.on_disk(KEYS, spec) == [False] + [True] * 7
        assert agent.disk_class(spec).used_slots == 7
        agent.audit()


@on_loop
async def test_an_old_generation_of_a_namespace_is_free_space(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert await agent.upkeep.invalidate("default/model") == (1, 8)
        await agent.store_on_disk(sequence("new", 2))
    async with DiskAgent(tmp_path) as agent:
        assert not any(agent.on_disk(KEYS))
        assert agent.on_disk(sequence("new", 2)) == [True] * 2
        assert agent.disk.damaged_record_count == 0
        assert await agent.load_and_release(KEYS) == [ABSENT] * 8
        agent.audit()


@on_loop
async def test_a_slab_of_an_unknown_namespace_is_deleted(tmp_path: Path) -> None:
    other = NamespaceSpec(name="other", block_bytes=(PAGE,))
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        await agent.store_on_disk(KEYS, other)
        lost = agent.place(KEYS, 0, other)[0].data_path
    manifest = tmp_path / "volume-0" / "namespaces.json"
    document = json.loads(manifest.read_text())
    document["namespaces"] = [
        each for each in document["namespaces"] if each["spec"]["name"] == "model"
    ]
    manifest.write_text(json.dumps(document))
    async with DiskAgent(tmp_path) as agent:
        assert not lost.exists()
        assert not lost.with_suffix(".table").exists()
        assert all(agent.on_disk(KEYS))
        counted = agent.disk.tier.slabs.allocated_bytes
        assert counted - agent.volume.storage.reserve_bytes < MIB
        agent.audit()


@on_loop
async def test_damaged_records_are_counted_and_free(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        slab, slot = agent.place(KEYS, 1)
        path = slab.table_path
    with path.open("r+b") as file:
        file.seek(4096 + slot * 256 + 40)
        file.write(b"rotten")
    async with DiskAgent(tmp_path) as agent:
        assert agent.on_disk(KEYS) == [True, False] + [True] * 6
        assert agent.disk.damaged_record_count == 1
        assert agent.upkeep.stats("")[1].corrupt_count == 1
        agent.audit()


@on_loop
async def test_the_agent_serves_what_it_has_read_so_far(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert len(agent.slabs) > 1
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, is_started=False) as agent:
        io.shut("read")
        recovery = asyncio.create_task(agent.disk.recover(agent.namespaces))
        await until(lambda: io.waiting("read"))
        assert agent.upkeep.stats("")[1].state is TierState.RECOVERING
        assert await agent.store(sequence("new", 2)) == [OK] * 2
        assert await agent.load_and_release(sequence("new", 2)) == [OK] * 2
        assert await agent.load_and_release(KEYS) == [ABSENT] * 8
        while not any(agent.on_disk(KEYS)):
            io.let_pass("read")
            io.shut("read")
            await asyncio.sleep(0)
        assert not recovery.done()
        there = [index for index, here in enumerate(agent.on_disk(KEYS)) if here]
        statuses = asyncio.create_task(agent.load_and_release(KEYS, wait=Wait.ALL))
        await until(lambda: io.waiting("read") > 1)
        with pytest.raises(OSError, match="still being looked for"):
            await agent.disk.demotion.flush()
        assert not any(agent.on_disk(sequence("new", 2)))
        io.let_pass()
        await recovery
        loaded = await statuses
        assert all(loaded[index] == OK for index in there)
        await until(lambda: all(agent.on_disk(sequence("new", 2))))
        assert agent.upkeep.stats("")[1].state is TierState.ACTIVE
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_damaged_block_that_is_found_during_recovery_costs_itself(tmp_path: Path) -> None:
    """It is all that has been adopted of its slab, whose next piece is still to be read."""
    async with DiskAgent(tmp_path) as agent:
        slab = await bare_slab(agent)
        await write_by_hand(agent, slab, KEYS, {0: (0, 100), 1: (1, 101)})
        agent_path = slab.data_path
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, is_started=False) as agent:
        # Pieces have 2048 records; the same state, with a small slab: adopted, not yet restored.
        io.shut("read")
        recovery = asyncio.create_task(agent.disk.recover(agent.namespaces))
        while not (found := [each for each in agent.slabs if each.data_path == agent_path]):
            io.let_pass("read")
            io.shut("read")
            await asyncio.sleep(0)
        [slab] = found
        await until(lambda: io.waiting("read"))
        disk = agent.disk_class()
        key = BlockKey(KEYS.lane, KEYS.hashes[5], KEYS.hashes[4], 5)
        disk.adopt(slab, [(key, slab.base + 5, 1)])
        disk.forget(disk.residency.find(KEYS.lane, KEYS.hashes[5]))
        io.let_pass()
        await in_time(recovery)
        await agent.quiet()
        assert agent_path.exists()
        assert agent.on_disk(sequence("a", 2)) == [True] * 2
        agent.audit()


@on_loop
async def test_a_slab_that_cannot_be_opened_does_not_stop_the_others(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
    io = GatedIO()
    io.fail_opens(errno.EIO, calls=1)
    async with DiskAgent(tmp_path, io=io, is_started=False) as agent:
        await agent.disk.recover(agent.namespaces)
        assert agent.disk.is_recovered
        assert any(agent.on_disk(KEYS))
        agent.audit()


@on_loop
async def test_a_table_that_cannot_be_read_costs_its_blocks(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        count = len(agent.slabs)
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, is_started=False) as agent:
        io.shut("read")
        recovery = asyncio.create_task(agent.disk.recover(agent.namespaces))
        for _ in range(count):  # one read each asks whether O_DIRECT is taken
            await until(lambda: io.waiting("read"))
            calls = io.calls["read"]
            io.shut("read")
            io.let_pass("read")
            io.shut("read")
            await until(lambda calls=calls: io.calls["read"] > calls)  # type: ignore[misc]
        await until(lambda: io.waiting("read"))
        io.fail_reads(errno.EIO, calls=1)
        with Messages() as messages:
            io.let_pass()
            await recovery
        assert messages.about("its table cannot be read") == 1
        assert agent.on_disk(KEYS).count(True) == 4
        agent.audit()


@on_loop
async def test_a_smaller_capacity_keeps_what_was_written_last(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=4 * MIB) as agent:
        number = 0
        while not agent.disk_class().counters.evicted:
            await agent.store_on_disk(sequence(f"s {number}", 8))
            number += 1
        last = sequence(f"s {number - 1}", 8)
        before = len(agent.disk_class().residency)
    async with DiskAgent(tmp_path, disk_bytes=2 * MIB) as agent:
        assert 0 < len(agent.disk_class().residency) < before
        assert agent.disk.tier.slabs.allocated_bytes <= 2 * MIB
        assert any(agent.on_disk(last))
        agent.audit()


@on_loop
async def test_a_record_of_the_greatest_sequence_is_read(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        slab = await bare_slab(agent)
        await write_by_hand(agent, slab, KEYS, {0: (0, MAX_SEQUENCE)})
    async with DiskAgent(tmp_path) as agent:
        assert agent.on_disk(sequence("a", 1)) == [True]


@on_loop
async def test_an_eviction_on_request_lasts_for_what_the_policy_evicted_before(
    tmp_path: Path,
) -> None:
    """Slots of evicted blocks keep their records until they are used again."""
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        disk = agent.disk_class()
        while disk.evict_one():
            pass
        await agent.upkeep.evict("", lambda _: KEYS, frozenset(Tier), dry_run=False)
    async with DiskAgent(tmp_path) as agent:
        assert not any(agent.on_disk(KEYS))

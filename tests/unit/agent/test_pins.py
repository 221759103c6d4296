"""`agent.serving.pins`: what is pinned stays, for as long as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.placing.evicting import Evicted
from kvtier.agent.serving.pins import Pin, PinLimits
from kvtier.core.block import BlockKeys, Tier
from kvtier.errors import InvalidRequestError, NotFoundError, OverloadedError
from tests.model.node import Node
from tests.unit.agent.disk_agent import DiskAgent, on_loop, until
from tests.unit.agent.worker import PAGE, Worker, sequence

ALL = frozenset(Tier)
KEYS = sequence("pinned", 8)
EVERYTHING = PinLimits(max_share=1.0, max_namespace_share=1.0)
MIB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(MIB, pin_limits=EVERYTHING)
    yield node
    node.close()


def pin(node: Node, worker: Worker, keys: BlockKeys, ttl_seconds: float = 60.0) -> Pin:
    namespace = worker.session.namespace
    [made] = node.run(node.pins.create(namespace, keys, ttl_seconds=ttl_seconds))
    assert isinstance(made, Pin)
    return made


def in_host(worker: Worker, keys: BlockKeys) -> int:
    return sum(row >= 0 for row in worker.size_class.find_many(keys.lane, keys.hashes))


def flood(node: Node, worker: Worker, name: str) -> None:
    """Twice as many blocks as HOST has room for."""
    for number in range(32):
        node.run(worker.store(sequence(f"{name} {number}", 16)))


def test_pinned_blocks_outlive_all_that_is_stored_after_them(node: Node) -> None:
    worker, other = Worker(node, "a"), Worker(node, "b", 2 * PAGE)
    node.run(worker.store(KEYS))
    made = pin(node, worker, KEYS)
    assert (made.block_count, made.pinned_bytes) == (8, 8 * PAGE)
    flood(node, worker, "of its own")
    flood(node, other, "of another")
    assert in_host(worker, KEYS) == 8
    node.pins.delete(made.pin_id)
    flood(node, other, "afterwards")
    assert in_host(worker, KEYS) == 0
    node.audit_at_rest()


@pytest.mark.parametrize("seed", range(6))
def test_no_pinned_block_is_lost_whatever_is_stored_moved_and_unpinned(seed: int) -> None:
    random = Random(seed)
    node = Node(MIB, pin_limits=PinLimits(max_share=0.5, max_namespace_share=0.3, max_pins=12))
    node.mover.turns_before, node.mover.turns_after = random.randrange(3), random.randrange(3)
    workers = [Worker(node, "a"), Worker(node, "b", 2 * PAGE), Worker(node, "c", 5 * PAGE)]
    kept: dict[str, tuple[Worker, set[bytes], float]] = {}
    refused = 0
    for step in range(150):
        worker = random.choice(workers)
        match random.randrange(5):
            case 0 | 1:
                keys = sequence(f"{random.randrange(40)}", random.randrange(1, 24))
                other = random.choice(workers)
                node.run(
                    worker.store(keys), other.store(sequence(f"{step}", random.randrange(1, 9)))
                )
            case 2:
                keys = sequence(f"{random.randrange(40)}", random.randrange(1, 24))
                rows = worker.size_class.find_many(keys.lane, keys.hashes)
                there = {each for each, row in zip(keys.hashes, rows, strict=True) if row >= 0}
                ttl = random.uniform(1, 100)
                try:
                    made = pin(node, worker, keys, ttl)
                except (OverloadedError, NotFoundError):
                    refused += 1
                else:
                    assert made.block_count == len(there)
                    kept[made.pin_id] = worker, there, node.clock() + ttl
            case 3 if kept:
                pin_id = random.choice(list(kept))
                node.pins.delete(pin_id)
                del kept[pin_id]
            case _:
                node.clock.advance(random.uniform(0, 20))
                node.settle()
                kept = {each: it for each, it in kept.items() if it[2] > node.clock()}
        assert {each.pin_id for each in node.pins} == set(kept)
        for whose in workers:
            pinned = {
                each for owner, blocks, _ in kept.values() if owner is whose for each in blocks
            }
            residency = whose.size_class.residency
            found = {residency.describe(row)[1] for row in whose.size_class.pinned}
            assert found == pinned
            assert whose.size_class.pinned.size_bytes <= 0.3 * MIB
        assert sum(each.size_class.pinned.size_bytes for each in workers) <= 0.5 * MIB
        node.audit_at_rest()
    assert refused
    node.close()


def test_a_block_that_is_pinned_while_it_moves_stays_pinned(node: Node) -> None:
    """A lease keeps the slot that is read; a pin has to follow the block."""
    worker = Worker(node)
    node.run(worker.store(KEYS))
    size_class = worker.size_class
    row = size_class.residency.find(KEYS.lane, KEYS.hashes[-1])
    source = size_class.residency.slot[row]
    made = pin(node, worker, KEYS)
    [target] = size_class.take(1)
    held = size_class.acquire([row])
    assert size_class.move(row, source, size_class.table.generations[source], target)
    size_class.release([target])
    size_class.release(held)
    node.audit_at_rest()
    assert not size_class.is_evictable(row)
    node.pins.delete(made.pin_id)
    assert size_class.is_evictable(row)
    node.audit_at_rest()


def test_a_pin_ends_at_its_time(node: Node) -> None:
    worker = Worker(node)
    node.run(worker.store(KEYS))
    for ttl in (30.0, 10.0, 20.0):
        pin(node, worker, KEYS, ttl)
    for left in (2, 1, 0):
        node.clock.advance(9)
        node.settle()
        assert len(node.pins) == left + 1
        node.clock.advance(1)
        node.settle()
        assert len(node.pins) == left
    node.audit_at_rest()
    assert worker.size_class.pinned.block_count == 0


def test_a_clock_that_jumps_ends_what_is_due(node: Node) -> None:
    worker = Worker(node)
    node.run(worker.store(KEYS))
    for ttl in (1.0, 3600.0, 86_400.0):
        pin(node, worker, KEYS, ttl)
    node.clock.advance(7200)
    node.settle()
    assert len(node.pins) == 1
    node.audit_at_rest()


def test_pins_outlive_the_worker_that_stored_the_blocks(node: Node) -> None:
    worker, other = Worker(node, "a"), Worker(node, "b")
    node.run(worker.store(KEYS))
    pin(node, worker, KEYS)
    node.sessions.disconnect(worker.attachment)
    flood(node, other, "of another")
    assert in_host(worker, KEYS) == 8


def test_what_is_not_cached_does_not_count(node: Node) -> None:
    worker = Worker(node)
    node.run(worker.store(sequence("pinned", 3)))
    assert pin(node, worker, KEYS).block_count == 3
    with pytest.raises(NotFoundError, match="none of these blocks"):
        pin(node, worker, sequence("never stored", 3))
    assert len(node.pins) == 1


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (PinLimits(max_share=8 * PAGE / MIB, max_namespace_share=1.0), "pins.max_share"),
        (PinLimits(max_share=1.0, max_namespace_share=8 * PAGE / MIB), "max_namespace_share"),
        (PinLimits(max_pins=1, max_namespace_share=1.0), "pins.max_pins"),
    ],
)
def test_past_a_limit_nothing_is_pinned(limits: PinLimits, word: str) -> None:
    node = Node(MIB, pin_limits=limits)
    worker = Worker(node)
    node.run(worker.store(sequence("pinned", 16)))
    pin(node, worker, KEYS)
    with pytest.raises(OverloadedError, match=word):
        pin(node, worker, sequence("pinned", 9))
    assert worker.size_class.pinned.block_count == 8
    if limits.max_pins > 1:
        pin(node, worker, KEYS)  # what is pinned already takes nothing more
    node.audit_at_rest()
    node.close()


@pytest.mark.parametrize("ttl", [0.0, -1.0, 31 * 86_400.0])
def test_times_that_are_not_allowed_are_refused(node: Node, ttl: float) -> None:
    worker = Worker(node)
    node.run(worker.store(KEYS))
    with pytest.raises(InvalidRequestError, match="ttl is"):
        pin(node, worker, KEYS, ttl)


def test_a_pin_that_is_being_made_is_not_listed_yet(node: Node) -> None:
    worker, keys = Worker(node), sequence("long", 120)
    node.run(worker.store(keys))
    making = node.loop.create_task(node.pins.create(worker.session.namespace, keys, ttl_seconds=60))
    seen = set()
    while not making.done():
        node.loop.turn()
        seen.add((worker.size_class.pinned.block_count, len(list(node.pins))))
    assert {(64, 0), (120, 1)} <= seen
    with pytest.raises(NotFoundError):
        node.pins.delete("")


def test_a_call_that_is_given_up_pins_nothing(node: Node) -> None:
    worker, keys = Worker(node), sequence("long", 120)
    node.run(worker.store(keys))
    making = node.loop.create_task(node.pins.create(worker.session.namespace, keys, ttl_seconds=60))
    while worker.size_class.pinned.block_count < 64:
        node.loop.turn()
    making.cancel()
    node.settle()
    assert worker.size_class.pinned.block_count == len(node.pins) == 0
    node.audit_at_rest()


def test_an_unknown_pin_is_said_to_be_none(node: Node) -> None:
    with pytest.raises(NotFoundError, match="no pin 'abc'"):
        node.pins.delete("abc")


# With DISK.


async def evict(agent: DiskAgent, *, force: bool = False, dry_run: bool = False) -> Evicted:
    return await agent.upkeep.evict("", lambda _: None, ALL, force=force, dry_run=dry_run)


@on_loop
async def test_what_is_on_disk_is_brought_to_host_and_pinned_in_both(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        made = await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        assert (made.block_count, made.pinned_bytes) == (8, 16 * PAGE)
        assert all(agent.in_host(KEYS))
        stats = {each.tier: each for each in agent.upkeep.stats("")}
        assert stats[Tier.HOST].pinned_bytes == stats[Tier.DISK].pinned_bytes == 8 * PAGE
        agent.audit()
        agent.pins.delete(made.pin_id)
        agent.audit()
        assert agent.upkeep.stats("")[0].pinned_bytes == 0


@on_loop
async def test_pins_hold_on_disk_under_pressure(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, disk_bytes=16 * MIB, host_pages=1024) as agent:
        await agent.store_on_disk(KEYS)
        await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        for number in range(24):
            await agent.store(sequence(f"{number}", 256))
            await agent.quiet()
        assert agent.disk_class().counters.evicted > 0
        assert all(agent.on_disk(KEYS))
        assert all(agent.in_host(KEYS))
        agent.audit()


@on_loop
async def test_what_finds_no_room_in_host_is_pinned_on_disk(tmp_path: Path) -> None:
    """As far as HOST's quota goes, from the first block on."""
    async with DiskAgent(tmp_path, pin_limits=PinLimits(0.5, 4 / 256)) as agent:
        await agent.store_on_disk(KEYS)
        made = await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        assert made.block_count == 8
        assert agent.in_host(KEYS) == [True] * 4 + [False] * 4
        agent.audit()


@on_loop
async def test_an_eviction_leaves_what_is_pinned_unless_forced(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(sequence("pinned", 12))
        await until(lambda: all(agent.on_disk(sequence("pinned", 12))))
        await agent.quiet()
        await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        for dry_run in (True, False):
            evicted = await evict(agent, dry_run=dry_run)
            assert (evicted.gone, evicted.deferred, evicted.pinned) == (8, 0, 16)
        assert all(agent.in_host(KEYS) + agent.on_disk(KEYS))
        evicted = await evict(agent, force=True)
        assert (evicted.gone, evicted.deferred, evicted.pinned) == (16, 0, 0)
        assert not any(agent.in_host(KEYS) + agent.on_disk(KEYS))
        assert len(agent.pins) == 0
        agent.audit()


@on_loop
async def test_an_invalidation_ends_pins(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        await agent.upkeep.invalidate("")
        assert len(agent.pins) == 0
        assert not any(agent.in_host(KEYS) + agent.on_disk(KEYS))
        agent.audit()


@on_loop
async def test_a_damaged_block_leaves_its_pin(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        made = await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
        agent.spoil(KEYS, 3)
        _ = [each async for each in agent.upkeep.scrub(Tier.DISK, 0)]
        assert agent.on_disk(KEYS).count(True) == 7
        assert (made.block_count, made.pinned_bytes) == (8, 15 * PAGE)
        agent.audit()


@on_loop
async def test_pins_do_not_outlive_the_agent(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=60)
    async with DiskAgent(tmp_path) as agent:
        assert all(agent.on_disk(KEYS))
        assert agent.disk_class().pinned.block_count == 0


@on_loop
async def test_two_that_pin_at_once_share_the_quota(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, pin_limits=PinLimits(0.5, 10 / 256)) as agent:
        first, second = sequence("first", 8), sequence("second", 8)
        await agent.store(first)
        await agent.store(second)
        namespace = agent.session().namespace
        results = await asyncio.gather(
            agent.pins.create(namespace, first, ttl_seconds=60),
            agent.pins.create(namespace, second, ttl_seconds=60),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in results) == ["OverloadedError", "Pin"]
        assert agent.host_class().pinned.block_count == 8

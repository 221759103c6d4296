"""`agent.placing.placement`: what fits is stored, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from kvtier import memory
from kvtier.agent.moving.mover import Mover
from kvtier.agent.placing.evicting import evict
from kvtier.agent.placing.placement import Placement
from kvtier.agent.sessions.grants import LeaseLimits
from kvtier.core.block import BlockStatus, Tier
from kvtier.tiers.arena import HostExtent, cell_of
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent
from tests.model.node import Node
from tests.unit.agent.worker import PAGE, Worker, sequence

T = TypeVar("T")

RESERVE = 1 << 30
OK, REFUSED = BlockStatus.OK, BlockStatus.REFUSED
NodeOf = Callable[[int], Node]


@pytest.fixture
def node_of() -> Iterator[NodeOf]:
    """Makes a node of so many pages, one session may use all of them."""
    nodes = []

    def make(pages: int) -> Node:
        nodes.append(Node(pages * PAGE, LeaseLimits(max_share=1.0)))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def fill(node: Node, worker: Worker, name: str = "fill") -> int:
    """Stores until something had to go; how many blocks are here then."""
    for number in range(100):
        node.run(worker.store(sequence(f"{name} {number}", 4)))
        if worker.size_class.counters.evicted:
            return worker.stored
    raise AssertionError("it never fills")


def test_a_store_that_fits_after_eviction_succeeds(node_of: NodeOf) -> None:
    node = node_of(32)
    worker = Worker(node)
    capacity = fill(node, worker)
    for number in range(20):
        [statuses] = node.run(worker.store(sequence(f"burst {number}", capacity - 4)))
        assert set(statuses) == {OK}, number


def test_a_large_block_has_room_where_many_small_classes_were(node_of: NodeOf) -> None:
    """One of its slots takes the extents of most of them, one after the other."""
    node = node_of(360)
    for number in range(50):
        worker = Worker(node, f"small-{number}")
        node.run(worker.store(sequence("small", 4)))
    large = Worker(node, "large", block_bytes=120 * PAGE)
    [statuses] = node.run(large.store(sequence("large", 2)))
    assert statuses == [OK, OK]


def test_a_sequence_longer_than_the_tier_is_kept_from_its_beginning(node_of: NodeOf) -> None:
    """Ends go before beginnings: what continues it does not push it out. Another sequence does."""
    node = node_of(32)
    worker = Worker(node)
    capacity = fill(node, worker)
    long = sequence("long", capacity + 8)
    for start in range(0, len(long.hashes), 4):
        node.run(worker.store(sequence("long", 4, start=start)))
    [(found, _)] = node.run(worker.lookup(long))
    assert capacity - 4 <= found.matched <= capacity
    [statuses] = node.run(worker.store(sequence("other", 8)))
    assert set(statuses) == {OK}


def test_what_fits_of_a_batch_is_its_beginning(node_of: NodeOf) -> None:
    node = node_of(32)
    worker = Worker(node)
    capacity = fill(node, worker)
    [statuses] = node.run(worker.store(sequence("long", 100)))
    assert statuses == [OK] * capacity + [REFUSED] * (100 - capacity)
    assert worker.size_class.counters.refused == 100 - capacity


def test_what_is_here_of_a_sequence_is_not_evicted_for_the_rest_of_it(node_of: NodeOf) -> None:
    node = node_of(32)
    worker = Worker(node)
    node.run(worker.store(sequence("long", 8)))
    [statuses] = node.run(worker.store(sequence("long", 100)))
    assert statuses[:8] == [BlockStatus.PRESENT] * 8
    assert (
        worker.size_class.find_many(sequence("long", 8).lane, sequence("long", 8).hashes)
        != [-1] * 8
    )


def test_nothing_waits_for_a_lease(node_of: NodeOf) -> None:
    node = node_of(32)
    worker = Worker(node)
    fill(node, worker)
    node.run(*(worker.load(sequence(f"fill {number}", 4)) for number in range(100)))
    [statuses] = node.run(worker.store(sequence("late", 4)))
    assert REFUSED in statuses


def test_the_oldest_hold_yields_to_a_reservation(node_of: NodeOf) -> None:
    node = node_of(32)
    worker = Worker(node)
    capacity = fill(node, worker)
    keys = sequence("held", capacity)
    node.run(worker.store(keys))
    [(_, hold_id)] = node.run(node.loading.lookup(worker.session, [keys], hold_seconds=10))
    [statuses] = node.run(worker.store(sequence("new", 4)))
    assert set(statuses) == {OK}
    assert node.leases.hold(worker.session.namespace.namespace_id, hold_id) is None


@pytest.mark.parametrize("block_bytes", [PAGE, 3 * PAGE])
def test_a_second_namespace_gets_its_share_of_a_full_arena(
    node_of: NodeOf, block_bytes: int
) -> None:
    node = node_of(64)
    first, second = Worker(node, "first"), Worker(node, "second", block_bytes)
    fill(node, first)
    for number in range(40):
        [statuses] = node.run(second.store(sequence(f"second {number}", 2)))
        assert OK in statuses
        node.run(first.store(sequence(f"more {number}", 2)))
    shares = [each.size_class.extent_bytes for each in (first, second)]
    # Shares follow the bytes stored: 1 to 1, and 1 to 3.
    assert shares[1] > 64 * PAGE // 4, shares
    assert shares[0] > 64 * PAGE // 8, shares


def test_blocks_move_out_of_an_extent_that_is_taken(node_of: NodeOf) -> None:
    node = node_of(40)
    first, second = Worker(node, "first"), Worker(node, "second")
    fill(node, first)
    node.run(second.store(sequence("new", 4)))
    present = {slot for slot in range(2048) if first.size_class.table.owner[slot] >= 0}
    assert len(present) == first.stored > 0
    assert node.retired


def test_two_classes_may_take_from_one_donor_in_the_same_turn(node_of: NodeOf) -> None:
    node = node_of(64)
    donor, *takers = Worker(node, "donor"), Worker(node, "one"), Worker(node, "two")
    fill(node, donor)
    node.mover.turns_before = 2
    results = node.run(*(taker.store(sequence(taker.name, 4)) for taker in takers))
    assert [set(statuses) for statuses in results] == [{OK}, {OK}]


def test_two_classes_that_wait_do_not_take_from_each_other_for_ever(node_of: NodeOf) -> None:
    """Neither can have what it wants: all the rest is leased."""
    node = node_of(40)
    donor = Worker(node, "donor")
    takers = [Worker(node, "one"), Worker(node, "two", 2 * PAGE)]
    for number in range(4):
        node.run(donor.store(sequence(f"fill {number}", 4)))
    node.run(*(donor.load(sequence(f"fill {number}", 4)) for number in range(4)))
    results = node.run(*(taker.store(sequence(taker.name, 30)) for taker in takers))
    for statuses in results:
        assert OK in statuses
        assert REFUSED in statuses


def test_an_extent_that_cannot_be_emptied_is_not_tried_for_ever(node_of: NodeOf) -> None:
    """The first block of a sequence is alone in an extent; all that continues it is leased.

    So it may not be evicted, and there is no other slot for it.
    """
    node = node_of(12)
    donor, taker = Worker(node, "donor"), Worker(node, "taker")
    size_class = donor.size_class

    async def arrange() -> None:
        await node.placement.make_room(size_class, 9)
        assert [extent.slots for extent in size_class.extents] == [4, 4, 1]
        others = size_class.take(4)
        await donor.store(sequence("long", 1))
        size_class.release(others)
        await donor.store(sequence("long", 5))
        others = size_class.take(3)
        await donor.store(sequence("long", 6))
        size_class.release(others)
        await donor.load(sequence("long", 5, start=1))

    node.run(arrange())
    assert [extent.used_slots for extent in size_class.extents] == [4, 1, 1]
    [statuses] = node.run(taker.store(sequence("new", 4)))
    assert REFUSED in statuses
    assert donor.stored == 6


def test_a_new_extent_is_no_donation(node_of: NodeOf) -> None:
    """It would be populated after it was given back, beyond the capacity."""
    node = node_of(64)
    worker = Worker(node)

    async def grow() -> None:
        size_class = worker.size_class
        await node.placement.make_room(size_class, 4)
        slots = size_class.take(4)
        first = len(size_class.extents)
        node.placement.grow_ahead(size_class)
        assert len(size_class.extents) == first + 1
        assert node.host.extent_to_retire(size_class) not in size_class.extents[first:]
        size_class.release(slots)

    node.run(grow())


def test_growth_ahead_pauses_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the shortest step, for ever."""
    monkeypatch.setattr("kvtier.agent.placing.placement._AHEAD_PAUSE", 1e12)
    monkeypatch.setattr("kvtier.agent.placing.placement._LONGEST_PAUSE_SECONDS", 1e12)

    steps = 0

    async def run(extent: Extent, call: Callable[..., T], *args: Any) -> T:
        nonlocal steps
        steps += 1
        return call(*args)

    async def scenario() -> None:
        host = HostTier(64 << 20)
        placement = Placement(host, run, spare_bytes=lambda: 1 << 40, step_bytes=PAGE)
        size_class = host.size_class(1, PAGE)
        try:
            async with asyncio.timeout(5):
                await placement.make_room(size_class, 2)
                slots = size_class.take(size_class.free_slots)
                before = steps
                placement.grow_ahead(size_class)
                for _ in range(100):
                    await asyncio.sleep(0)
                assert size_class.free_slots == steps - before == 1
                await placement.make_room(size_class, 3)
            size_class.release(slots)
        finally:
            await placement.close()
            host.close()

    asyncio.run(scenario())


def placement_of(host: HostTier, mover: Mover, spare_bytes: Callable[[], int]) -> Placement:
    """As the agent's: every extent's work goes to the same threads."""
    return Placement(
        host, lambda extent, call, *args: mover.run(call, *args), spare_bytes=spare_bytes
    )


class Available:
    """Memory that the machine has left."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.size_bytes


@pytest.mark.parametrize("spare_bytes", [0, PAGE, 4 << 20, 9 << 20])
def test_a_store_does_not_spin_when_memory_is_short(spare_bytes: int) -> None:
    available = Available(RESERVE + spare_bytes)

    async def scenario() -> None:
        mover, host = Mover(1), HostTier(64 << 20)
        placement = placement_of(host, mover, lambda: available() - RESERVE)
        size_class = host.size_class(1, PAGE)
        try:
            async with asyncio.timeout(1):
                await placement.make_room(size_class, 4)
        finally:
            await placement.close()
            mover.close()
            host.close()
        assert (size_class.free_slots >= 4) == (spare_bytes >= PAGE)

    asyncio.run(scenario())
    assert available.asked < 20


def test_growing_stops_at_the_reserve_and_what_is_there_is_used(node_of: NodeOf) -> None:
    available = Available(1 << 40)

    async def scenario() -> None:
        mover, host = Mover(1), HostTier(1 << 20)
        placement = placement_of(host, mover, lambda: available() - RESERVE)
        size_class = host.size_class(1, PAGE)
        await placement.make_room(size_class, 4)
        before = host.arena.allocated_bytes
        available.size_bytes = 0
        async with asyncio.timeout(5):
            await placement.make_room(size_class, 64)
        assert host.arena.allocated_bytes == before
        assert size_class.free_slots >= 4
        await placement.close()
        mover.close()
        host.close()

    asyncio.run(scenario())


def test_pages_are_populated_before_slots_are_handed_out(node_of: NodeOf) -> None:
    node = node_of(64)
    worker = Worker(node)
    node.run(worker.reserve(sequence("a", 4)))
    for extent in worker.size_class.extents:
        assert isinstance(extent, HostExtent)
        populated = extent.populated_slots * extent.slot_bytes
        assert memory.allocated_bytes(extent.fd) == populated > 0


def test_an_extent_that_empties_while_it_is_given_up_on_is_not_used_again(
    node_of: NodeOf,
) -> None:
    """Its blocks cannot be moved, and are evicted by an operator at that moment."""
    node = node_of(24)
    donor, taker = Worker(node, "donor"), Worker(node, "taker", 8 * PAGE)
    for count in range(1, 16):
        node.run(donor.store(sequence("long", count)))
    node.run(donor.load(sequence("long", 1, start=donor.stored - 1)))
    node.mover.turns_before = 3
    for turns in range(12):

        async def evict_all(turns: int = turns) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await evict(donor.session.namespace, None, frozenset({Tier.HOST}))

        node.run(taker.store(sequence(f"new {turns}", 1)), evict_all())
        node.run(donor.store(sequence("long", 15)))


def test_moves_are_done_by_real_movers_too() -> None:
    """As in the agent: threads, and readers who keep a lease on what is moved."""

    async def scenario() -> None:
        mover, host = Mover(2), HostTier(64 * PAGE)
        placement = placement_of(host, mover, lambda: 1 << 40)
        donor, taker = host.size_class(1, PAGE), host.size_class(2, PAGE)
        await store_rows(placement, donor, 40)
        async with asyncio.timeout(10):
            await placement.make_room(taker, 8)
        assert taker.free_slots >= 8
        for row in range(donor.residency.row_count):
            if (slot := donor.residency.slot[row]) >= 0:
                _, block_hash = donor.residency.describe(row)
                assert bytes(cell_of(donor.table, slot)[:32]) == block_hash
        host.check_integrity()
        await placement.close()
        mover.close()
        host.close()

    asyncio.run(scenario())
    assert not [each for each in threading.enumerate() if each.name.startswith("kvtier-mover")]


async def store_rows(placement: Placement, size_class: SizeClass, count: int) -> None:
    keys = sequence("rows", count)
    for position, block_hash in enumerate(keys.hashes):
        await placement.make_room(size_class, 1)
        for slot in size_class.take(1):
            cell_of(size_class.table, slot)[:32] = memoryview(block_hash)
            size_class.commit(keys.lane, block_hash, b"", position, slot)
            size_class.release([slot])


def test_memory_is_there_before_it_is_asked_for(node_of: NodeOf) -> None:
    node = node_of(4096)
    worker = Worker(node)
    for number in range(10):
        node.run(worker.store(sequence(f"ahead {number}", 40)))
        slots = worker.size_class.extent_bytes // PAGE
        assert worker.size_class.free_slots >= slots // 4

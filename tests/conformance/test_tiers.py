"""What every tier does, whatever it is made of."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from kvtier.core import slots as layout
from kvtier.core.block import BlockKey, Lane
from kvtier.tiers.slot_table import Extent
from tests.conformance.spaces import KINDS, PAGE, DiskSpace, Kind, Space

every_tier = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def space(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Space]:
    with request.param.open(tmp_path) as space:
        yield space
        check(space)


def check(space: Space) -> None:
    """What holds at every moment."""
    space.tier.check_integrity()
    allocated = space.tier.space.allocated_bytes
    assert space.counted_bytes() <= allocated <= space.tier.space.capacity_bytes


def key(number: int, position: int = 0, parent: BlockKey | None = None) -> BlockKey:
    block_hash = hashlib.sha256(f"{number} {position}".encode()).digest()
    return BlockKey(Lane(), block_hash, parent.block_hash if parent else b"", position)


# Space.


def test_what_is_allocated_is_within_the_capacity_and_not_below_what_is_counted(
    space: Space,
) -> None:
    size_class = space.size_class()
    while space.tier.can_grow(size_class):
        extent = space.tier.grow(size_class)
        check(space)
        space.populate(size_class, extent)
        check(space)
        for slot in size_class.take(extent.slots):
            space.write(size_class, key(slot), slot)
        check(space)
    # All of it is of use: no more is left than a slot and what goes with a small extent.
    left = space.tier.space.capacity_bytes - space.tier.space.allocated_bytes
    assert left <= space.stripes * (PAGE + 3 * PAGE + (64 << 10))


def test_an_extent_counts_from_before_it_is_populated(space: Space) -> None:
    size_class = space.size_class()
    before = space.tier.space.allocated_bytes
    extent = space.tier.grow(size_class)
    assert space.tier.space.allocated_bytes >= before + extent.slots * PAGE
    assert size_class.free_slots == 0
    assert space.tier.grow(size_class) is extent, "it is populated before another is made"
    space.populate(size_class, extent)
    assert size_class.free_slots == extent.slots


def test_extents_begin_small_and_double(space: Space) -> None:
    size_class = space.size_class()
    sizes = [space.grow(size_class).slots for _ in range(5)]
    assert sizes == [4, 4, 8, 16, 32]


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_extents_are_sized_in_bytes_not_in_slots(space: Space, pages: int) -> None:
    size_class = space.size_class(block_bytes=pages * PAGE - 100)
    assert size_class.slot_bytes == pages * PAGE
    assert [space.grow(size_class).slots for _ in range(3)] == [4, 4, 8]


def test_a_slot_that_does_not_fit_gets_no_extent(space: Space) -> None:
    size_class = space.size_class(block_bytes=space.tier.space.capacity_bytes)
    assert not space.tier.can_grow(size_class)


def test_what_is_given_back_can_be_had_again(space: Space) -> None:
    size_class, idle = space.size_class(), list[Extent]()
    space.tier.on_idle = lambda _, extent: idle.append(extent)
    empty = space.tier.space.allocated_bytes
    totals = []
    for _ in range(3):
        while space.tier.can_grow(size_class):
            space.grow(size_class)
        totals.append(sum(extent.slots for extent in size_class.extents))
        for extent in list(size_class.extents):
            size_class.withdraw(extent)
            assert idle.pop() is extent
            space.give_back(size_class, extent)
            check(space)
        assert not size_class.extents
        # HOST's tables keep their pages.
        assert space.tier.space.allocated_bytes <= empty + 8 * PAGE
    assert totals[1] == totals[2]


def test_classes_share_one_capacity(space: Space) -> None:
    classes = [space.size_class(number, 2 * PAGE) for number in range(1, 5)]
    while any(space.tier.can_grow(each) for each in classes):
        for each in classes:
            if space.tier.can_grow(each):
                space.grow(each)
                check(space)
    assert all(each.extents for each in classes)


# Slots.


def test_slots_and_generations_are_given_once_and_generations_grow(space: Space) -> None:
    classes = [space.size_class(1), space.size_class(1, 2 * PAGE), space.size_class(2)]
    latest, seen = 0, set[tuple[int, int]]()
    for size_class in classes:
        space.grow_to(size_class, 12)
        for _ in range(3):
            slots = size_class.take(4)
            generations = [size_class.table.generations[slot] for slot in slots]
            assert generations == sorted(generations)
            assert generations[0] > latest
            latest = generations[-1]
            names = {(size_class.table.namespace_id, slot) for slot in slots}
            assert not names & seen
            seen |= names
    for size_class in classes:
        for extent in size_class.extents:
            assert extent.base % layout.SLOTS_PER_PAGE == 0


def test_numbers_of_an_extent_are_used_again_with_new_generations(space: Space) -> None:
    size_class = space.size_class()
    extent = space.grow(size_class)
    slots = size_class.take(4)
    before = {slot: size_class.table.generations[slot] for slot in slots}
    size_class.release(slots)
    size_class.withdraw(extent)
    space.give_back(size_class, extent)
    again = space.grow(size_class)
    assert again.base == extent.base
    assert again.extent_id != extent.extent_id
    for slot in size_class.take(4):
        assert size_class.table.generations[slot] > max(before.values())


def test_all_stripes_give_their_share(space: Space) -> None:
    size_class = space.size_class()
    while len({extent.stripe for extent in size_class.extents}) < space.stripes:
        space.grow(size_class)
    smallest = min(
        sum(e.slots for e in size_class.extents if e.stripe == stripe)
        for stripe in range(space.stripes)
    )
    slots = size_class.take(smallest * space.stripes)
    shares = Counter(size_class.table.extent_of(slot).stripe for slot in slots)
    assert set(shares.values()) == {smallest}


def test_a_part_of_an_extent_is_populated_at_a_time(tmp_path: Path) -> None:
    """DISK makes a slab at once; what can be done in steps is published in steps."""
    with KINDS[0].open(tmp_path) as space:
        size_class = space.size_class()
        extent = space.tier.grow(size_class)
        for done in (1, 2, 3):
            space.populate(size_class, extent, 1)
            assert size_class.free_slots == done
            check(space)


# Blocks.


def test_blocks_are_whole_where_they_were_written(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 20)
    keys = [key(number) for number in range(20)]
    slots = [space.store(size_class, each) for each in keys]
    for each, slot in zip(keys, slots, strict=True):
        assert space.is_whole(size_class, each, slot)
    assert not space.is_whole(size_class, keys[0], slots[1])


def test_moved_blocks_are_whole_in_their_new_slots(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 24)
    keys = [key(number) for number in range(10)]
    before = [space.store(size_class, each) for each in keys]
    rows = size_class.find_many(Lane(), [each.block_hash for each in keys])
    assert space.move(size_class, rows) == [True] * 10
    after = size_class.slots_of(rows)
    assert not set(before) & set(after)
    for each, slot in zip(keys, after, strict=True):
        assert space.is_whole(size_class, each, slot)
    assert size_class.free_slots >= 10


def test_a_damaged_block_is_not_moved(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 8)
    keys = [key(number) for number in range(3)]
    slots = [space.store(size_class, each) for each in keys]
    rows = size_class.find_many(Lane(), [each.block_hash for each in keys])
    can_tell = space.spoil(size_class, slots[1])
    assert space.move(size_class, rows) == [True, not can_tell, True]
    moved = [a != b for a, b in zip(slots, size_class.slots_of(rows), strict=True)]
    assert moved == [True, not can_tell, True]


def test_a_block_that_goes_while_it_is_copied_does_not_come_back(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 4)
    source = space.store(size_class, key(1))
    [row] = size_class.find_many(Lane(), [key(1).block_hash])
    generation = size_class.table.generations[source]
    [target] = size_class.take(1)
    held = size_class.acquire([row])
    copy = space.tier.space.copying(size_class, [(row, source, target)])
    size_class.forget(row)
    copy()
    assert not size_class.move(row, source, generation, target)
    size_class.release([target])
    size_class.release(held)
    assert len(size_class.residency) == 0
    assert size_class.used_slots == 0


# Trading.


def test_the_colder_class_gives_an_extent(space: Space) -> None:
    cold, hot = space.size_class(1), space.size_class(2, 2 * PAGE)
    space.grow_to(hot, 4)
    number = 0
    while space.tier.can_grow(cold):
        space.grow(cold)
    while not cold.counters.evicted:
        space.store(cold, key(number))
        number += 1
    for each in range(8):
        space.store(hot, key(each))
    assert space.tier.donors(hot) == [cold]
    assert space.tier.donors(cold) == []
    extent = space.tier.extent_to_retire(cold)
    assert extent is not None
    idle: list[Extent] = []
    space.tier.on_idle = lambda _, each: idle.append(each)
    cold.withdraw(extent)
    while cold.free_slots < extent.used_slots:
        assert cold.evict_one()
    rows = [cold.table.owner[slot] for slot in cold.live_slots(extent)]
    whole = space.move(cold, rows)
    assert all(whole)
    assert idle == [extent]
    space.give_back(cold, extent)
    assert space.tier.can_grow(hot)
    space.grow(hot)
    check(space)


def test_an_extent_in_use_is_not_taken(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 4)
    space.store(size_class, key(1))
    held = size_class.acquire(size_class.find_many(Lane(), [key(1).block_hash]))
    assert space.tier.extent_to_retire(size_class) is None
    size_class.release(held)
    assert space.tier.extent_to_retire(size_class) is size_class.extents[0]


def test_what_is_withdrawn_can_be_restored(space: Space) -> None:
    size_class = space.size_class()
    space.grow_to(size_class, 8)
    space.store(size_class, key(1))
    before = size_class.free_slots
    for extent in size_class.extents:
        if extent.used_slots:
            size_class.withdraw(extent)
            assert size_class.free_slots == before - (extent.slots - 1)
            size_class.restore(extent)
    assert size_class.free_slots == before


def test_a_namespace_without_extents_is_dropped(space: Space) -> None:
    size_class, other = space.size_class(1), space.size_class(2)
    extent = space.grow(size_class)
    space.grow(other)
    size_class.withdraw(extent)
    space.give_back(size_class, extent)
    space.tier.drop_namespace(1)
    assert space.tier.classes == [other]
    space.tier.drop_namespace(1)
    again = space.size_class(1)
    assert again is not size_class
    space.grow(again)
    check(space)


def test_a_namespace_with_extents_is_not_dropped(space: Space) -> None:
    space.grow(space.size_class())
    with pytest.raises(AssertionError):
        space.tier.drop_namespace(1)


# Adopting.


def test_of_two_that_hold_a_block_the_greater_generation_is_adopted(space: Space) -> None:
    size_class = space.size_class()
    extent = space.tier.grow(size_class)
    extent.withheld = True
    space.populate(size_class, extent)
    assert size_class.free_slots == 0
    first = extent.base
    found = [(key(9), first + 3, 1)]
    found += [(key(1), first + slot, (20, 30, 10)[slot]) for slot in range(3)]
    for piece in (found[:2], found[2:]):
        size_class.adopt(extent, piece)
    row = size_class.residency.find(Lane(), key(1).block_hash)
    assert size_class.residency.slot[row] == first + 1
    assert size_class.table.generations[first + 1] == 30
    assert not size_class.evict_one(), "not before all is known"
    size_class.restore(extent)
    size_class.admit(range(size_class.residency.row_count))
    check(space)
    assert (size_class.used_slots, size_class.free_slots) == (2, extent.slots - 2)
    assert [size_class.evict_one() for _ in range(3)] == [True, True, False]


def test_an_extent_that_is_withheld_is_not_idle(space: Space) -> None:
    """All that has been adopted of it may go before the rest is read."""
    size_class, idle = space.size_class(), list[Extent]()
    space.tier.on_idle = lambda _, extent: idle.append(extent)
    extent = space.tier.grow(size_class)
    extent.withheld = True
    space.populate(size_class, extent)
    size_class.adopt(extent, [(key(1), extent.base, 1)])
    size_class.forget(size_class.residency.find(Lane(), key(1).block_hash))
    assert not idle
    assert size_class.free_slots == 0
    size_class.restore(extent)
    assert size_class.free_slots == extent.slots


def test_generations_go_on_after_those_of_an_earlier_run(space: Space) -> None:
    space.tier.continue_after(1 << 40)
    size_class = space.size_class()
    space.grow_to(size_class, 4)
    assert min(size_class.table.generations[slot] for slot in size_class.take(4)) > 1 << 40


# All of it.


class Walk:
    """Steps by chance, and what must be true after each."""

    def __init__(self, space: Space) -> None:
        self.space = space
        space.tier.on_idle = lambda size_class, extent: space.give_back(size_class, extent)
        self.classes = [space.size_class(1), space.size_class(1, 2 * PAGE), space.size_class(2)]
        self.held: list[tuple[int, list[int]]] = []
        self.number = 0
        self.latest = 0

    def grow(self, which: int) -> None:
        if self.space.tier.can_grow(self.classes[which]):
            self.space.grow(self.classes[which])

    def store(self, which: int) -> None:
        size_class = self.classes[which]
        self.number += 1
        slot = self.space.store(size_class, key(self.number))
        if slot >= 0:
            generation = size_class.table.generations[slot]
            assert generation > self.latest
            self.latest = generation

    def hold(self, which: int) -> None:
        residency = self.classes[which].residency
        rows = [row for row in range(residency.row_count) if residency.slot[row] >= 0][:3]
        self.held.append((which, list(self.classes[which].acquire(rows))))

    def release(self, which: int) -> None:
        if self.held:
            number, slots = self.held.pop(which % len(self.held))
            self.classes[number].release(slots)

    def evict(self, which: int) -> None:
        self.classes[which].evict_one()

    def move(self, which: int) -> None:
        size_class = self.classes[which]
        slot = size_class.residency.slot
        rows = [row for row in range(size_class.residency.row_count) if slot[row] >= 0]
        assert all(self.space.move(size_class, rows[: min(3, size_class.free_slots)]))

    def retire(self, which: int) -> None:
        """As when another class takes an extent."""
        size_class = self.classes[which]
        if not size_class.extents or any(each.retiring for each in size_class.extents):
            return
        extent = self.space.tier.extent_to_retire(size_class)
        if extent is None:
            return
        size_class.withdraw(extent)
        while size_class.free_slots < extent.used_slots and size_class.evict_one():
            pass
        if extent.used_slots:
            rows = [size_class.table.owner[slot] for slot in size_class.live_slots(extent)]
            self.space.move(size_class, rows)
        assert extent not in size_class.extents

    def check(self) -> None:
        check(self.space)
        for size_class in self.classes:
            for row in range(size_class.residency.row_count):
                slot = size_class.residency.slot[row]
                if slot >= 0:
                    lane, block_hash = size_class.residency.describe(row)
                    each = BlockKey(lane, block_hash)
                    assert self.space.is_whole(size_class, each, slot)


_STEPS = ("grow", "store", "store", "store", "hold", "release", "evict", "move", "retire")


@every_tier
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(steps=st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 2)), max_size=40))
def test_books_and_bytes_are_right_after_every_step(
    kind: Kind, steps: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as path, kind.open(Path(path), 160) as space:
        walk = Walk(space)
        for name, which in steps:
            getattr(walk, name)(which)
            space.tier.check_integrity()
        walk.check()


# DISK alone: what it holds outlives it.


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "disk" in kind.name], ids=lambda kind: kind.name
)
def test_a_start_counts_what_it_finds_and_adopts_it(kind: Kind, tmp_path: Path) -> None:
    keys = [key(number) for number in range(10)]
    with kind.open(tmp_path) as space:
        size_class = space.size_class()
        space.grow_to(size_class, 10)
        for each in keys:
            space.store(size_class, each)
        allocated = space.tier.space.allocated_bytes
    with kind.open(tmp_path) as space:
        assert isinstance(space, DiskSpace)
        size_class = space.size_class()
        identity = space.disk.slabs.tenancy(size_class).identity
        for found in space.reopened():
            slab = space.disk.slabs.adopt(size_class.table, found.volume, found.header)
            slab.open()
            slab.populated_slots, slab.withheld = slab.slots, True
            size_class.extents.append(slab)
            records = slab.records(identity, 0)
            slab.digests[records.slots] = records.digests
            hashes = zip(records.lanes, records.hashes, strict=True)
            slots = [slab.base + slot for slot in records.slots]
            keys_there = [BlockKey(lane, block_hash) for lane, block_hash in hashes]
            size_class.adopt(slab, zip(keys_there, slots, records.sequences, strict=True))
            size_class.restore(slab)
        assert space.tier.space.allocated_bytes == allocated
        rows = size_class.find_many(Lane(), [each.block_hash for each in keys])
        for each, slot in zip(keys, size_class.slots_of(rows), strict=True):
            assert space.is_whole(size_class, each, slot)
        check(space)

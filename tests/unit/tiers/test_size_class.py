"""Behaviour of `kvtier.tiers.size_class` and of the choices of `kvtier.tiers.slot_tier`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvtier.core.block import BlockStatus, Lane
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent

PAGE = 4096
LANE = Lane()


class Tier:
    """A HOST tier whose extents are populated, moved and given back by hand."""

    def __init__(self, pages: int = 200) -> None:
        self.idle: list[Extent] = []
        self.host = HostTier(pages * PAGE)
        self.host.on_idle = lambda _, extent: self.idle.append(extent)

    def size_class(self, slots: int = 0, namespace: int = 1, block_bytes: int = PAGE) -> SizeClass:
        """With at least so many slots."""
        size_class = self.host.size_class(namespace, block_bytes)
        while size_class.free_slots < slots:
            extent = self.host.grow(size_class)
            extent.populate(extent.slots)
            size_class.publish(extent, extent.slots)
        return size_class


@pytest.fixture
def tier() -> Iterator[Tier]:
    tier = Tier()
    yield tier
    tier.host.check_integrity()
    tier.host.close()


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def store(size_class: SizeClass, *numbers: int) -> list[int]:
    """A chain of blocks; their rows."""
    rows = []
    for position, number in enumerate(numbers):
        parent = name(numbers[position - 1]) if position else b""
        [slot] = size_class.take(1)
        assert size_class.commit(LANE, name(number), parent, position, slot) is BlockStatus.OK
        size_class.release([slot])
        rows.append(size_class.residency.find(LANE, name(number)))
    return rows


def store_singles(size_class: SizeClass, count: int, first: int = 0) -> list[int]:
    return [store(size_class, number)[0] for number in range(first, first + count)]


def present(size_class: SizeClass, *numbers: int) -> list[bool]:
    return [row >= 0 for row in size_class.find_many(LANE, map(name, numbers))]


def test_slots_are_taken_once_and_with_new_generations(tier: Tier) -> None:
    size_class = tier.size_class(8)
    seen: set[int] = set()
    for _ in range(3):
        slots = size_class.take(8)
        generations = {size_class.table.generations[slot] for slot in slots}
        assert len(set(slots)) == len(generations) == 8
        assert not generations & seen
        assert 0 not in generations
        seen |= generations
        size_class.release(slots)
    assert size_class.used_slots == size_class.referenced_slots == 0


def test_generations_are_unique_in_the_whole_tier(tier: Tier) -> None:
    classes = [tier.size_class(4, namespace) for namespace in (1, 2)]
    generations = [c.table.generations[slot] for c in classes for slot in c.take(4)]
    assert len(set(generations)) == 8


def test_no_more_slots_are_taken_than_there_are(tier: Tier) -> None:
    size_class = tier.size_class(4)
    count = size_class.free_slots
    assert len(size_class.take(count + 5)) == count
    assert size_class.take(1) == []


def test_taking_evicts_only_what_it_must(tier: Tier) -> None:
    size_class = tier.size_class(4)
    count = size_class.free_slots
    store_singles(size_class, count)
    size_class.release(size_class.take(2))
    assert present(size_class, *range(count)) == [False, False] + [True] * (count - 2)
    assert size_class.counters.evicted == 2


def test_an_uncommitted_slot_is_no_block(tier: Tier) -> None:
    size_class = tier.size_class(4)
    size_class.release(size_class.take(2))
    assert len(size_class.residency) == 0
    assert size_class.free_slots == 4


def test_the_first_commit_wins(tier: Tier) -> None:
    size_class = tier.size_class(4)
    first, second = size_class.take(2)
    assert size_class.commit(LANE, name(1), b"", 0, first) is BlockStatus.OK
    assert size_class.commit(LANE, name(1), b"", 0, second) is BlockStatus.PRESENT
    [row] = size_class.find_many(LANE, [name(1)])
    assert size_class.residency.slot[row] == first
    size_class.release([first, second])
    assert size_class.free_slots == 3


def test_a_referenced_block_is_not_evicted(tier: Tier) -> None:
    size_class = tier.size_class(4)
    rows = store_singles(size_class, 4)
    slots = [size_class.acquire([rows[0]]), size_class.acquire([rows[0]])]
    for held in slots:
        assert rows[0] != size_class.policy.victim()
        size_class.release(held)
    assert rows[0] == size_class.policy.victim()


def test_ends_go_before_beginnings(tier: Tier) -> None:
    size_class = tier.size_class(4)
    store(size_class, 1, 2, 3)
    size_class.touch(size_class.find_many(LANE, [name(3)]))
    gone = []
    while size_class.evict_one():
        gone.append(present(size_class, 1, 2, 3))
    assert gone == [[True, True, False], [True, False, False], [False] * 3]


def test_a_block_above_a_leased_one_stays(tier: Tier) -> None:
    size_class = tier.size_class(4)
    rows = store(size_class, 1, 2, 3)
    size_class.acquire([rows[1]])
    while size_class.evict_one():
        pass
    assert present(size_class, 1, 2, 3) == [True, True, False]


def test_a_forgotten_block_keeps_its_slot_until_nobody_reads_it(tier: Tier) -> None:
    size_class = tier.size_class(4)
    rows = store_singles(size_class, 4)
    [slot] = held = size_class.acquire([rows[0]])
    generation = size_class.table.generations[slot]
    size_class.forget(rows[0])
    assert not any(present(size_class, 0))
    assert slot not in size_class.take(4)
    assert size_class.table.generations[slot] == generation
    size_class.release(held)
    assert size_class.take(1) == [slot]
    assert size_class.table.generations[slot] != generation


def test_a_withdrawn_extent_hands_out_nothing(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [extent] = size_class.extents
    store_singles(size_class, 2)
    size_class.withdraw(extent)
    assert size_class.live_slots(extent) == [extent.base, extent.base + 1]
    assert size_class.free_slots == 0
    assert tier.idle == []
    assert size_class.take(1) == []


def test_an_extent_is_idle_when_its_last_slot_is_let_go(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [extent] = size_class.extents
    rows = store_singles(size_class, 2)
    held = size_class.acquire([rows[0]])
    reserved = size_class.take(1)
    size_class.withdraw(extent)
    for row in rows:
        size_class.forget(row)
    size_class.release(reserved)
    assert tier.idle == []
    size_class.release(held)
    assert tier.idle == [extent]


def test_an_empty_extent_is_idle_at_once(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [extent] = size_class.extents
    size_class.withdraw(extent)
    assert tier.idle == [extent]


def test_restoring_takes_a_withdrawal_back(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [extent] = size_class.extents
    store_singles(size_class, 1)
    reserved = size_class.take(1)
    size_class.withdraw(extent)
    size_class.restore(extent)
    size_class.check_integrity()
    assert size_class.free_slots == 2
    assert not set(size_class.take(2)) & set(reserved)


def test_slots_published_while_an_extent_is_withdrawn_wait_for_its_return(tier: Tier) -> None:
    size_class = tier.size_class()
    extent = tier.host.grow(size_class)
    extent.populate(2)
    size_class.publish(extent, 2)
    store_singles(size_class, 1)
    size_class.withdraw(extent)
    extent.populate(2)
    size_class.publish(extent, 2)
    assert size_class.free_slots == 0
    size_class.restore(extent)
    assert size_class.free_slots == 3


def test_a_moved_block_is_found_in_its_new_slot(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [row] = store(size_class, 1)
    source = size_class.residency.slot[row]
    [target] = size_class.take(1)
    assert size_class.move(row, source, size_class.table.generations[source], target)
    size_class.release([target])
    assert size_class.residency.slot[row] == target
    assert source in size_class.take(3)


def test_a_reader_of_a_moved_block_keeps_the_old_slot(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [row] = store(size_class, 1)
    held = size_class.acquire([row])
    [target] = size_class.take(1)
    size_class.move(row, held[0], size_class.table.generations[held[0]], target)
    size_class.release([target])
    assert held[0] not in size_class.take(4)
    size_class.release(held)
    assert size_class.take(1) == [held[0]]


def test_a_block_that_went_while_it_was_copied_is_not_moved(tier: Tier) -> None:
    size_class = tier.size_class(8)
    [row] = store(size_class, 1)
    source = size_class.residency.slot[row]
    size_class.withdraw(size_class.table.extent_of(source))
    [target] = size_class.take(1)
    size_class.forget(row)
    [again] = store(size_class, 2)
    assert again == row, "the row is used again, by another block in another slot"
    place = size_class.residency.slot[again]
    assert not size_class.move(row, source, size_class.table.generations[source], target)
    assert size_class.residency.slot[again] == place
    size_class.release([target])


def test_a_moved_block_may_be_evicted(tier: Tier) -> None:
    size_class = tier.size_class(4)
    [row] = store(size_class, 1)
    source = size_class.residency.slot[row]
    [target] = size_class.take(1)
    size_class.move(row, source, size_class.table.generations[source], target)
    assert size_class.coldest_rank() is None
    size_class.release([target])
    assert size_class.evict_one()


def test_a_class_with_nothing_to_evict_has_no_rank(tier: Tier) -> None:
    size_class = tier.size_class(4)
    assert size_class.coldest_rank() is None
    rows = store_singles(size_class, 1)
    assert size_class.coldest_rank() is not None
    size_class.acquire(rows)
    assert size_class.coldest_rank() is None


@pytest.mark.parametrize("damage", ["references", "used", "referenced", "free"])
def test_integrity_is_checked(damage: str) -> None:
    tier = Tier()
    size_class = tier.size_class(4)
    store_singles(size_class, 2)
    slots = size_class.take(1)
    tier.host.check_integrity()
    if damage == "references":
        size_class.table.references[slots[0]] = 0
    elif damage == "used":
        size_class.used_slots += 1
    elif damage == "referenced":
        size_class.referenced_slots -= 1
    else:
        size_class.extents[0].used_slots = 0
    with pytest.raises(AssertionError):
        tier.host.check_integrity()
    tier.host.close()


# Which extent goes to whom.


def test_groups_of_one_size_share_a_class(tier: Tier) -> None:
    first = tier.host.size_class(1, 3000)
    assert first is tier.host.size_class(1, 4096)
    assert first is not tier.host.size_class(1, 4097)
    assert first is not tier.host.size_class(2, 4096)


def test_the_class_with_the_coldest_block_gives(tier: Tier) -> None:
    cold, warm = tier.size_class(4, 1), tier.size_class(4, 2)
    taker = tier.size_class(0, 3)
    store_singles(cold, 4)
    store_singles(warm, 4)
    assert tier.host.donors(taker)[0] is cold
    cold.touch(cold.find_many(LANE, map(name, range(4))))
    assert tier.host.donors(taker)[0] is warm


def test_a_class_with_an_extent_to_spare_gives_first(tier: Tier) -> None:
    cold, spare = tier.size_class(4, 1), tier.size_class(4, 2)
    store_singles(cold, 4)
    assert tier.host.donors(tier.size_class(0, 3))[0] is spare


def test_nothing_is_taken_from_a_class_that_is_as_busy(tier: Tier) -> None:
    taker, other = tier.size_class(4, 1), tier.size_class(4, 2)
    for round_number in range(4):
        store_singles(taker, 1, round_number)
        store_singles(other, 1, round_number)
    assert tier.host.donors(taker) == []
    assert tier.host.donors(other) == []


def test_nothing_is_taken_from_a_class_whose_blocks_are_all_leased(tier: Tier) -> None:
    leased = tier.size_class(4, 1)
    leased.acquire(store_singles(leased, 4))
    assert tier.host.donors(tier.size_class(0, 2)) == []


def test_one_extent_of_a_class_is_taken_at_a_time(tier: Tier) -> None:
    donor = tier.size_class(8, 1)
    store_singles(donor, 8)
    donor.withdraw(donor.extents[0])
    assert tier.host.donors(tier.size_class(0, 2)) == []


def test_the_extent_with_the_fewest_blocks_is_taken(tier: Tier) -> None:
    donor = tier.size_class(12)
    rows = store_singles(donor, 12)
    assert len(donor.extents) == 3
    for row in rows[5:7]:
        donor.forget(row)
    assert tier.host.extent_to_retire(donor) is donor.extents[1]


def test_an_extent_that_somebody_reads_or_writes_is_not_taken(tier: Tier) -> None:
    donor = tier.size_class(8)
    donor.acquire(store_singles(donor, 1))
    assert tier.host.extent_to_retire(donor) is donor.extents[1]
    donor.take(7)
    assert tier.host.extent_to_retire(donor) is None


def test_an_extent_that_is_being_populated_is_not_taken(tier: Tier) -> None:
    donor = tier.size_class(4)
    donor.extents[0].populating = True
    assert tier.host.extent_to_retire(donor) is None


def test_growing_goes_on_with_an_extent_that_has_not_all_its_pages(tier: Tier) -> None:
    size_class = tier.size_class()
    extent = tier.host.grow(size_class)
    extent.populate(1)
    size_class.publish(extent, 1)
    assert tier.host.grow(size_class) is extent
    extent.populate(3)
    size_class.publish(extent, 3)
    assert tier.host.grow(size_class) is not extent


def test_capacity_is_never_exceeded_by_growing() -> None:
    tier = Tier(pages=30)
    classes = [tier.host.size_class(n, PAGE * size) for n, size in ((1, 1), (1, 2), (2, 3))]
    while any(tier.host.can_grow(each) for each in classes):
        for each in classes:
            if tier.host.can_grow(each):
                extent = tier.host.grow(each)
                extent.populate(extent.slots)
                each.publish(extent, extent.slots)
                each.take(extent.slots)
                tier.host.check_integrity()
    tier.host.close()


def test_a_namespace_is_dropped_with_its_classes(tier: Tier) -> None:
    tier.host.size_class(1, PAGE)
    tier.host.size_class(2, PAGE)
    tier.host.drop_namespace(1)
    assert len(tier.host.classes) == 1


def test_a_slot_that_was_used_again_while_it_was_copied_is_not_moved(tier: Tier) -> None:
    """Row and slot are the same as before; the block is another."""
    size_class = tier.size_class(2)
    [row] = store(size_class, 1)
    source = size_class.residency.slot[row]
    generation = size_class.table.generations[source]
    [target] = size_class.take(1)
    size_class.forget(row)
    assert size_class.take(1) == [source]
    size_class.commit(LANE, name(7), b"", 0, source)
    size_class.release([source])
    assert size_class.residency.find(LANE, name(7)) == row
    assert not size_class.move(row, source, generation, target)
    size_class.release([target])

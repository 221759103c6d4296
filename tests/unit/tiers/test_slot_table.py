"""Behaviour of `kvtier.tiers.slot_table`: free slots are given once, and from everywhere alike."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kvtier.tiers.slot_table import FreeSlots

STRIPES = 3
EXTENT_SLOTS = 8
SLOTS = 6 * EXTENT_SLOTS


def stripe_of(slot: int) -> int:
    """Extents of 8 slots take turns."""
    return slot // EXTENT_SLOTS % STRIPES


def free_slots(*slots: int) -> FreeSlots:
    free = FreeSlots()
    for slot in slots:
        free.put(slot, stripe_of(slot))
    return free


def striped(*lengths: int) -> FreeSlots:
    """So many in each stripe: stripe 1's begin at 1000."""
    free = FreeSlots()
    for stripe, length in enumerate(lengths):
        for slot in range(length):
            free.put(1000 * stripe + slot, stripe)
    return free


def shares(slots: list[int]) -> Counter[int]:
    return Counter(slot // 1000 for slot in slots)


def test_the_lowest_of_one_stripe_go_first() -> None:
    free = free_slots(5, 2, 7, 0, 3)
    assert free.take(2) == [0, 2]
    free.put(1, 0)
    assert free.take(3) == [1, 3, 5]
    assert free.take(3) == [7]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_nothing_is_taken_where_nothing_is(count: int) -> None:
    free = FreeSlots()
    assert free.take(count) == []
    assert len(free) == 0
    assert list(free) == []


def test_several_stripes_give_equal_shares() -> None:
    free = striped(10, 10, 10)
    for _ in range(3):
        assert shares(free.take(9)) == {0: 3, 1: 3, 2: 3}
    assert len(free) == 3


def test_of_each_stripe_the_lowest_go_first() -> None:
    free = striped(10, 10)
    assert sorted(free.take(4)) == [0, 1, 1000, 1001]
    assert sorted(free.take(4)) == [2, 3, 1002, 1003]


def test_a_share_that_is_no_whole_number_is_rounded() -> None:
    assert sorted(shares(striped(10, 10, 10).take(10)).values()) == [3, 3, 4]


def test_what_a_stripe_does_not_have_the_others_give() -> None:
    assert shares(striped(10, 1, 10).take(9)) == {0: 4, 1: 1, 2: 4}
    assert shares(striped(0, 2, 10).take(9)) == {1: 2, 2: 7}


@pytest.mark.parametrize("count", [1, 3])
def test_many_small_batches_get_equal_shares_too(count: int) -> None:
    """A worker that stores block after block writes to all places alike."""
    free = striped(60, 60)
    taken = [slot for _ in range(60 // count) for slot in free.take(count)]
    given = shares(taken)
    assert abs(given[0] - given[1]) <= count


def test_a_range_is_taken_out() -> None:
    free = free_slots(0, 1, 2, 5, 8, 9)
    free.withdraw(range(1, 5), 0)
    assert len(free) == 4
    assert sorted(free) == [0, 5, 8, 9]
    assert sorted(free.take(10)) == [0, 5, 8, 9]


def test_what_was_taken_out_may_be_put_back() -> None:
    free = free_slots(0, 1, 2, 3)
    free.withdraw(range(4), 0)
    assert (len(free), free.take(1)) == (0, [])
    for slot in (3, 1):
        free.put(slot, 0)
    assert free.take(4) == [1, 3]


def test_a_range_of_a_stripe_that_has_none_is_taken_out() -> None:
    free = free_slots(0, 1)
    free.withdraw(range(8, 16), 1)
    assert len(free) == 2
    assert free.take(2) == [0, 1]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, SLOTS - 1)),
            st.tuples(st.just("put extent"), st.integers(0, SLOTS // EXTENT_SLOTS - 1)),
            st.tuples(st.just("take"), st.integers(0, SLOTS // 2)),
            st.tuples(st.just("withdraw"), st.integers(0, SLOTS // EXTENT_SLOTS - 1)),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_or_given_twice(steps: list[tuple[str, int]]) -> None:
    free, model = FreeSlots(), set[int]()
    for step, number in steps:
        if step == "take":
            taken = free.take(number)
            assert len(taken) == min(number, len(model))
            assert len(set(taken)) == len(taken)
            assert set(taken) <= model
            judge_shares(taken, model)
            model -= set(taken)
        elif step == "withdraw":
            extent = range(number * EXTENT_SLOTS, (number + 1) * EXTENT_SLOTS)
            free.withdraw(extent, stripe_of(extent.start))
            model -= set(extent)
        else:
            start = number * EXTENT_SLOTS
            slots = range(start, start + EXTENT_SLOTS) if step == "put extent" else [number]
            for slot in slots:
                if slot not in model:
                    free.put(slot, stripe_of(slot))
                    model.add(slot)
        assert len(free) == len(model)
        assert sorted(free) == sorted(model)
    assert sorted(free.take(SLOTS)) == sorted(model)
    assert len(free) == 0


def judge_shares(taken: list[int], model: set[int]) -> None:
    """A stripe gives its lowest, and less than another only if it has no more."""
    given = [[slot for slot in taken if stripe_of(slot) == stripe] for stripe in range(STRIPES)]
    most = max(map(len, given))
    for stripe, slots in enumerate(given):
        there = sorted(slot for slot in model if stripe_of(slot) == stripe)
        assert slots == there[: len(slots)]
        assert len(slots) >= min(len(there), most - 1)

"""Behaviour of `kvtier.core.policies.lru`, as any policy's user sees it."""

from __future__ import annotations

import itertools
import random

import hypothesis.strategies as st
from hypothesis import given, settings

from kvtier.core.policies.base import Context
from kvtier.core.policies.lru import Lru
from kvtier.core.residency import Residency


class Blocks:
    """Rows under a policy, some of them not evictable for now."""

    def __init__(self, count: int = 0) -> None:
        self.residency = Residency()
        self.present: set[int] = set()
        self.busy: set[int] = set()
        self.asked = 0
        context = Context(itertools.count(1), lambda: 0.0, random.Random(0))
        self.policy = Lru(self, context)
        for row in range(count):
            self.add(row)

    def is_evictable(self, row: int) -> bool:
        self.asked += 1
        return row in self.present and row not in self.busy

    def add(self, row: int) -> None:
        self.present.add(row)
        self.policy.insert(row)
        self.policy.release(row)

    def free(self, row: int) -> None:
        self.busy.discard(row)
        self.policy.release(row)

    def remove(self, row: int) -> None:
        self.present.discard(row)
        self.policy.remove(row)

    def evict(self) -> int:
        row = self.policy.victim()
        if row >= 0:
            self.remove(row)
        return row

    def drain(self) -> list[int]:
        return list(iter(self.evict, -1))


def test_what_was_used_longest_ago_goes_first() -> None:
    blocks = Blocks(5)
    blocks.policy.touch([1])
    blocks.policy.touch([0])
    assert blocks.drain() == [2, 3, 4, 1, 0]


def test_asking_for_a_victim_changes_nothing() -> None:
    blocks = Blocks(3)
    assert [blocks.policy.victim() for _ in range(3)] == [0, 0, 0]


def test_nothing_to_evict_is_minus_one() -> None:
    assert Blocks().policy.victim() == -1


def test_what_is_in_use_is_passed_over_and_comes_back() -> None:
    blocks = Blocks(3)
    blocks.busy = {0, 1, 2}
    assert blocks.evict() == -1
    for row in (2, 0):
        blocks.free(row)
    assert blocks.drain() == [0, 2]
    blocks.free(1)
    assert blocks.drain() == [1]


def test_a_block_that_becomes_free_late_keeps_its_age() -> None:
    blocks = Blocks(4)
    blocks.busy = {1}
    assert blocks.evict() == 0
    assert blocks.policy.victim() == 2
    blocks.free(1)
    assert blocks.drain() == [1, 2, 3]


def test_a_touch_while_in_use_counts() -> None:
    blocks = Blocks(3)
    blocks.busy = {0}
    assert blocks.evict() == 1
    blocks.policy.touch([0])
    blocks.free(0)
    assert blocks.drain() == [2, 0]


def test_a_row_that_is_used_again_is_a_new_block() -> None:
    blocks = Blocks(3)
    blocks.remove(0)
    blocks.add(0)
    assert blocks.drain() == [1, 2, 0]


def test_releasing_twice_is_releasing_once() -> None:
    blocks = Blocks(2)
    for _ in range(3):
        blocks.policy.release(0)
    assert blocks.drain() == [0, 1]


def test_ranks_of_policies_that_share_ticks_compare() -> None:
    context = Context(itertools.count(1), lambda: 0.0, random.Random(0))
    one, other = Lru(Blocks(), context), Lru(Blocks(), context)
    one.insert(0)
    other.insert(0)
    assert one.rank(0) < other.rank(0)
    one.touch([0])
    assert one.rank(0) > other.rank(0)


def test_no_call_looks_at_all_blocks() -> None:
    blocks = Blocks(2000)
    blocks.busy = set(range(0, 2000, 2))
    for row in range(0, 2000, 2):
        blocks.policy.touch([row])
    blocks.asked = 0
    for _ in range(1000):
        blocks.evict()
    for row in range(0, 2000, 2):
        blocks.free(row)
    assert len(blocks.drain()) == 1000
    assert blocks.asked < 20_000


steps = st.lists(
    st.tuples(st.sampled_from(["add", "touch", "busy", "free", "remove"]), st.integers(0, 7)),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_a_victim_is_always_the_oldest_that_may_go(operations: list[tuple[str, int]]) -> None:
    blocks, rows = Blocks(), 0
    age: dict[int, int] = {}
    for now, (operation, wanted) in enumerate(operations):
        row = wanted % (rows + 1) if operation == "add" else wanted
        if operation == "add" and row not in blocks.present:
            rows = max(rows, row + 1)
            blocks.busy.discard(row)
            blocks.add(row)
            age[row] = now
        elif row in blocks.present:
            if operation == "touch":
                blocks.policy.touch([row])
                age[row] = now
            elif operation == "busy":
                blocks.busy.add(row)
            elif operation == "free":
                blocks.free(row)
            elif operation == "remove":
                blocks.remove(row)
        free = blocks.present - blocks.busy
        assert blocks.policy.victim() == min(free, key=age.__getitem__, default=-1)

"""Behaviour of `kvtier.core.residency` and its index, against plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kvtier.core.block import Lane
from kvtier.core.index import HashIndex
from kvtier.core.residency import NONE, Residency

LANE, OTHER = Lane(0, 0), Lane(1, 0)
HASHES = [bytes([number]) * 16 for number in range(10)]


@dataclass
class Known:
    """What the model knows of a block: which one it hangs on, or which one it waits for."""

    position: int
    slot: int
    parent: bytes | None = None
    awaited: bytes | None = None


class Model:
    """A position that a worker claims is judged once: when both blocks are here."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, Known] = {}

    def insert(self, block_hash: bytes, parent: bytes, position: int, slot: int) -> None:
        self.blocks[block_hash] = block = Known(position, slot, awaited=parent or None)
        if parent in self.blocks:
            self.judge(block, parent)
        for each in self.blocks.values():
            if each.awaited == block_hash:
                self.judge(each, block_hash)

    def judge(self, block: Known, parent: bytes) -> None:
        block.awaited = None
        if self.blocks[parent].position < block.position:
            block.parent = parent

    def remove(self, block_hash: bytes) -> None:
        del self.blocks[block_hash]
        for each in self.blocks.values():
            if each.parent == block_hash:
                each.parent, each.awaited = None, block_hash


def chain(residency: Residency, *hashes: bytes) -> list[int]:
    parents = (b"", *hashes)
    return [
        residency.insert(LANE, each, parents[position], position, slot=position)
        for position, each in enumerate(hashes)
    ]


hashes = st.sampled_from(HASHES)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), hashes, st.sampled_from([b"", *HASHES]), st.integers(0, 4)),
        st.tuples(st.just("remove"), hashes, st.just(b""), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(operations)
def test_random_operations_agree_with_a_model(
    steps: list[tuple[str, bytes, bytes, int]],
) -> None:
    residency, model = Residency(), Model()
    for number, (operation, block_hash, parent, position) in enumerate(steps):
        row = residency.find(LANE, block_hash)
        assert (row != NONE) == (block_hash in model.blocks)
        if operation == "insert" and row == NONE:
            residency.insert(LANE, block_hash, parent, position, number)
            model.insert(block_hash, parent, position, number)
        elif operation == "remove" and row != NONE:
            above = model.blocks[block_hash].parent
            expected = residency.find(LANE, above) if above else NONE
            assert residency.remove(row) == expected
            model.remove(block_hash)
        agree(residency, model.blocks)


def agree(residency: Residency, blocks: dict[bytes, Known]) -> None:
    rows = {each: residency.find(LANE, each) for each in blocks}
    assert len(residency) == len(blocks)
    assert len(set(rows.values())) == len(blocks)
    residency.check_integrity(lambda slot, row: slot >= 0)
    for block_hash, row in rows.items():
        parent = blocks[block_hash].parent
        children = {each for each in blocks if blocks[each].parent == block_hash}
        assert residency.describe(row) == (LANE, block_hash)
        assert residency.slot[row] == blocks[block_hash].slot
        assert residency.parent(row) == (rows[parent] if parent else NONE)
        continuations = residency.continuations(LANE, block_hash)
        assert set(continuations) == children
        assert len(continuations) == len(children)
        assert residency.is_leaf(row) == (not children)


def test_orphans_are_adopted_when_their_parent_arrives() -> None:
    residency = Residency()
    late = [residency.insert(LANE, each, HASHES[0], 1, 1) for each in HASHES[1:4]]
    assert [residency.parent(row) for row in late] == [NONE] * 3
    assert set(residency.continuations(LANE, HASHES[0])) == set(HASHES[1:4])
    parent = residency.insert(LANE, HASHES[0], b"", 0, 0)
    assert [residency.parent(row) for row in late] == [parent] * 3
    assert set(residency.continuations(LANE, HASHES[0])) == set(HASHES[1:4])


def test_children_wait_for_a_parent_that_went() -> None:
    residency = Residency()
    first, second, third = chain(residency, *HASHES[:3])
    assert residency.remove(second) == first
    assert residency.is_leaf(first)
    again = residency.insert(LANE, HASHES[1], HASHES[0], 1, 9)
    assert residency.parent(third) == again
    assert residency.parent(again) == first


def test_a_removed_orphan_is_not_adopted() -> None:
    residency = Residency()
    residency.remove(residency.insert(LANE, HASHES[1], HASHES[0], 1, 1))
    parent = residency.insert(LANE, HASHES[0], b"", 0, 0)
    assert residency.is_leaf(parent)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_circles_are_impossible(position: int) -> None:
    residency = Residency()
    first = residency.insert(LANE, HASHES[0], HASHES[1], position, 0)
    second = residency.insert(LANE, HASHES[1], HASHES[0], 1, 1)
    myself = residency.insert(LANE, HASHES[2], HASHES[2], 1, 2)
    links = {residency.parent(first) == second, residency.parent(second) == first}
    assert links != {True}
    assert residency.parent(myself) == NONE
    residency.check_integrity(lambda slot, row: True)


def test_lanes_do_not_meet() -> None:
    residency = Residency()
    mine = residency.insert(LANE, HASHES[0], b"", 0, 0)
    child = residency.insert(OTHER, HASHES[1], HASHES[0], 1, 1)
    assert residency.find(OTHER, HASHES[0]) == NONE
    assert residency.find(Lane(7, 7), HASHES[0]) == NONE
    assert residency.parent(child) == NONE
    assert residency.is_leaf(mine)
    assert residency.describe(child) == (OTHER, HASHES[1])


def test_many_are_found_at_once_in_their_order() -> None:
    residency = Residency()
    rows = chain(residency, *HASHES[:3])
    wanted = [HASHES[2], HASHES[5], HASHES[0], HASHES[2]]
    assert residency.find_many(LANE, wanted) == [rows[2], NONE, rows[0], rows[2]]
    assert residency.find_many(OTHER, wanted) == [NONE] * 4


def test_rows_are_used_again() -> None:
    residency = Residency()
    rows = chain(residency, *HASHES)
    for row in rows:
        residency.remove(row)
    again = chain(residency, *HASHES)
    assert set(again) == set(rows)
    assert residency.row_count >= len(HASHES)


def test_integrity_is_checked() -> None:
    residency = Residency()
    chain(residency, *HASHES[:3])
    with pytest.raises(AssertionError):
        residency.check_integrity(lambda slot, row: slot != 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=20), st.booleans()), max_size=40))
def test_the_index_is_a_dictionary(steps: list[tuple[bytes, bool]]) -> None:
    index, model = HashIndex(), dict[bytes, int]()
    for row, (block_hash, is_put) in enumerate(steps):
        if is_put:
            index.put(block_hash, row)
            model[block_hash] = row
        else:
            assert index.pop(block_hash) == model.pop(block_hash, -1)
        assert len(index) == len(model)
    assert set(index) == set(model)
    asked = [each for each, _ in steps]
    assert index.get_many(asked) == [model.get(each, -1) for each in asked]
    assert [index.get(each) for each in asked] == index.get_many(asked)

"""Behaviour of `kvtier.client.slots` on memory of its own."""

from __future__ import annotations

import numpy as np
import pytest

from kvtier.client.attachment import MappedExtent
from kvtier.client.slots import GrantedSlots, Loaded, Reservation, copy_in, copy_out, leading
from kvtier.core.block import BlockStatus
from kvtier.errors import AgentUnavailableError
from kvtier.v1 import block_pb2

OK, ABSENT, PRESENT = int(BlockStatus.OK), int(BlockStatus.ABSENT), int(BlockStatus.PRESENT)
REFUSED, EXPIRED = int(BlockStatus.REFUSED), int(BlockStatus.EXPIRED)
SLOTS, SLOT_BYTES, BLOCK_BYTES = 8, 16, 12


class Memory:
    """Two extents; slot s of extent e is full of the byte 10 e + s, its generation 100 e + s."""

    def __init__(self) -> None:
        self.extents = {extent: self.extent(extent) for extent in (1, 2)}

    def extent(self, extent: int) -> MappedExtent:
        cells = np.repeat(np.arange(SLOTS, dtype=np.uint8) + 10 * extent, SLOT_BYTES)
        generations = np.arange(SLOTS, dtype=np.uint64) + 100 * extent
        return MappedExtent(extent, cells.reshape(SLOTS, SLOT_BYTES), generations)

    def granted(self, *places: tuple[int, int] | int) -> GrantedSlots:
        """A place is (extent, slot), or a status for a key without one."""
        pairs = [place if isinstance(place, tuple) else None for place in places]
        return GrantedSlots(
            [OK if isinstance(place, tuple) else place for place in places],
            block_pb2.Slots(
                extent=[pair[0] if pair else 0 for pair in pairs],
                slot=[pair[1] if pair else 0 for pair in pairs],
                generation=[100 * pair[0] + pair[1] if pair else 0 for pair in pairs],
            ),
            self.extents,
            BLOCK_BYTES,
        )

    def reuse(self, extent: int, slot: int) -> None:
        """The agent gives the slot to another block."""
        self.extents[extent].generations[slot] += 1000
        self.extents[extent].cells[slot] = 0xEE


@pytest.fixture
def memory() -> Memory:
    return Memory()


def runs(slots: GrantedSlots) -> list[tuple[int, int, int]]:
    return [(first, stop, int(cells[0, 0])) for first, stop, cells in slots.runs()]


def test_consecutive_keys_in_consecutive_slots_are_one_run(memory: Memory) -> None:
    assert runs(memory.granted((1, 2), (1, 3), (1, 4))) == [(0, 3, 12)]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (((1, 0), ABSENT, (1, 1)), [(0, 1, 10), (2, 3, 11)]),
        (((1, 0), (1, 2), (1, 3)), [(0, 1, 10), (1, 3, 12)]),
        (((1, 7), (2, 0)), [(0, 1, 17), (1, 2, 20)]),
        (((1, 0), (2, 1)), [(0, 1, 10), (1, 2, 21)]),
        (((1, 3), (1, 2), (1, 2)), [(0, 1, 13), (1, 2, 12), (2, 3, 12)]),
        ((ABSENT, REFUSED), []),
        ((ABSENT, (2, 5), (2, 6)), [(1, 3, 25)]),
        ((), []),
    ],
)
def test_gaps_jumps_and_other_extents_end_a_run(
    memory: Memory, places: tuple[tuple[int, int] | int, ...], expected: list[tuple[int, int, int]]
) -> None:
    assert runs(memory.granted(*places)) == expected


def test_cells_are_blocks_and_not_slots(memory: Memory) -> None:
    slots = memory.granted((1, 2), ABSENT, (2, 3))
    cells = slots.cells()
    assert [cell is None for cell in cells] == [False, True, False]
    for cell, value in ((cells[0], 12), (cells[2], 23)):
        assert cell is not None
        assert cell.tolist() == [value] * BLOCK_BYTES


@pytest.mark.parametrize("is_list", [False, True])
def test_only_blocks_that_are_there_are_copied_out(memory: Memory, is_list: bool) -> None:
    out = np.zeros((4, BLOCK_BYTES), np.uint8)
    slots = memory.granted((1, 0), ABSENT, (2, 1), (2, 2))
    copy_out(slots, list(out) if is_list else out)
    assert out[:, 0].tolist() == out[:, -1].tolist() == [10, 0, 21, 22]
    assert slots.statuses == [OK, ABSENT, OK, OK]


@pytest.mark.parametrize("is_list", [False, True])
def test_only_slots_that_were_granted_are_written(memory: Memory, is_list: bool) -> None:
    rows = np.full((4, BLOCK_BYTES), 7, np.uint8)
    copy_in(memory.granted((1, 3), PRESENT, (1, 4), (2, 0)), list(rows) if is_list else rows)
    first, second = memory.extents[1].cells, memory.extents[2].cells
    assert first[:, 0].tolist() == [10, 11, 12, 7, 7, 15, 16, 17]
    assert second[:, 0].tolist() == [7, 21, 22, 23, 24, 25, 26, 27]
    assert first[3].tolist() == [7] * BLOCK_BYTES + [13] * (SLOT_BYTES - BLOCK_BYTES)


def test_what_was_reused_before_the_copy_ended_is_expired(memory: Memory) -> None:
    slots = memory.granted((1, 0), (1, 1), (1, 2), ABSENT, (2, 1))
    memory.reuse(1, 1)
    memory.reuse(2, 7)
    out = np.zeros((5, BLOCK_BYTES), np.uint8)
    copy_out(slots, out)
    assert slots.statuses == [OK, EXPIRED, OK, ABSENT, OK]
    assert not slots.expire_changed()


def test_an_extent_whose_memory_was_taken_away_is_expired(memory: Memory) -> None:
    slots = memory.granted((1, 0), (2, 0))
    memory.extents[1].generations[:] = 0
    assert slots.expire_changed()
    assert slots.statuses == [EXPIRED, OK]


def test_blocks_of_an_extent_that_could_not_be_mapped_are_expired(memory: Memory) -> None:
    del memory.extents[1]
    slots = memory.granted((1, 0), (2, 0), ABSENT)
    assert slots.statuses == [EXPIRED, OK, ABSENT]
    assert runs(slots) == [(1, 2, 20)]


def test_leading_counts_up_to_the_first_gap() -> None:
    assert leading([OK, OK, ABSENT, OK]) == 2
    assert leading([OK]) == 1
    assert leading([]) == leading([REFUSED, OK]) == 0


class Releases:
    """Counts how often a lease was released."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_loaded_views_are_read_only_and_none_where_absent(memory: Memory) -> None:
    with Loaded(memory.granted((1, 1), ABSENT, (1, 3)), 5.0, Releases()) as loaded:
        assert loaded.count == 1
        first, second, third = loaded.views
        assert second is None
        for view, value in ((first, 11), (third, 13)):
            assert view is not None
            assert view.tolist() == [value] * BLOCK_BYTES
            with pytest.raises(ValueError, match="read-only"):
                view[0] = 1
    memory.extents[1].cells[1] = 5
    assert first is not None
    assert first[0] == 5, "a view, not a copy"


def test_runs_of_loaded_blocks_are_read_only_and_leave_out_what_is_absent(memory: Memory) -> None:
    with Loaded(memory.granted((1, 1), (1, 2), ABSENT, (2, 0)), 5.0, Releases()) as loaded:
        found = []
        for first, stop, cells in loaded.runs():
            found.append((first, stop, cells[:, 0].tolist()))
            with pytest.raises(ValueError, match="read-only"):
                cells[0, 0] = 1
    assert found == [(0, 2, [11, 12]), (3, 4, [20])]


def test_a_lease_is_released_once(memory: Memory) -> None:
    releases = Releases()
    with Loaded(memory.granted((1, 1)), 5.0, releases) as loaded:
        assert releases.count == 0
        loaded.release()
        assert releases.count == 1
    assert releases.count == 1


def test_loaded_blocks_are_valid_until_a_slot_is_reused(memory: Memory) -> None:
    loaded = Loaded(memory.granted((1, 1), ABSENT, (2, 2)), 5.0, Releases())
    assert loaded.valid()
    memory.reuse(1, 2)
    assert loaded.valid()
    memory.reuse(2, 2)
    assert not loaded.valid()
    assert not loaded.valid(), "it does not become valid again"
    assert loaded.statuses == [OK, ABSENT, EXPIRED]


class FakeAgent:
    """Grants one reservation."""

    def __init__(self, *outcome: int, error: Exception | None = None) -> None:
        self.outcome = list(outcome)
        self.error = error
        self.committed: list[list[int]] = []
        self.given_back = 0

    def commit(self, indexes: list[int]) -> list[int]:
        assert not self.given_back, "given back, then committed"
        self.committed.append(indexes)
        if self.error:
            raise self.error
        return self.outcome

    def give_back(self) -> None:
        self.given_back += 1


def test_a_commit_names_the_written_keys_and_keeps_the_other_statuses(memory: Memory) -> None:
    agent = FakeAgent(OK, PRESENT)
    with Reservation(memory.granted((1, 1), PRESENT, (1, 3), REFUSED), 5.0, agent) as reservation:
        reservation.write(np.full((4, BLOCK_BYTES), 9, np.uint8))
        assert reservation.commit() == [OK, PRESENT, PRESENT, REFUSED]
    assert agent.committed == [[0, 2]]
    assert agent.given_back == 1
    assert memory.extents[1].cells[[1, 3], 0].tolist() == [9, 9]


def test_a_reservation_that_is_not_committed_is_given_back(memory: Memory) -> None:
    agent = FakeAgent()
    with pytest.raises(ZeroDivisionError), Reservation(memory.granted((1, 1)), 5.0, agent):
        raise ZeroDivisionError
    assert (agent.committed, agent.given_back) == ([], 1)


def test_a_reservation_of_nothing_asks_nothing(memory: Memory) -> None:
    agent = FakeAgent()
    with Reservation(memory.granted(PRESENT, REFUSED), 5.0, agent) as reservation:
        assert reservation.commit() == [PRESENT, REFUSED]
        assert reservation.cells == [None, None]
    assert (agent.committed, agent.given_back) == ([], 1)


def test_after_a_commit_that_failed_nothing_counts_as_stored(memory: Memory) -> None:
    agent = FakeAgent(error=AgentUnavailableError("gone"))
    reservation = Reservation(memory.granted((1, 1), PRESENT), 5.0, agent)
    with pytest.raises(AgentUnavailableError):
        reservation.commit()
    assert reservation.statuses == [EXPIRED, PRESENT]
    assert agent.given_back == 1


def test_cells_of_a_reservation_are_written_in_place(memory: Memory) -> None:
    reservation = Reservation(memory.granted((2, 5), PRESENT), 5.0, FakeAgent(OK))
    cell, nothing = reservation.cells
    assert nothing is None
    assert cell is not None
    cell[:] = 1
    assert memory.extents[2].cells[5].tolist() == [1] * BLOCK_BYTES + [25] * 4


def test_nothing_is_committed_after_a_release(memory: Memory) -> None:
    agent = FakeAgent(OK)
    reservation = Reservation(memory.granted((1, 1)), 5.0, agent)
    reservation.release()
    statuses = reservation.commit()
    assert agent.committed == []
    assert statuses != [OK], "OK would mean that it was stored"

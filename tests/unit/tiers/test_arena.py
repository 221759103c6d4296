"""Behaviour of `kvtier.tiers.arena`: what is counted is what the kernel counts."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from kvtier import memory
from kvtier.core import slots as layout
from kvtier.tiers.arena import Arena, HostExtent, SharedSlotTable, copy_cells

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 * PAGE)
    yield arena
    arena.close()


@pytest.fixture
def table(arena: Arena) -> SharedSlotTable:
    return arena.create_table(1)


def populated(
    arena: Arena, table: SharedSlotTable, slots: int, slot_bytes: int = PAGE
) -> HostExtent:
    extent = arena.create_extent(table, slots, slot_bytes)
    assert isinstance(extent, HostExtent)
    extent.populate(slots)
    extent.populated_slots = slots
    return extent


def retire(arena: Arena, table: SharedSlotTable, extent: HostExtent) -> None:
    table.discard(extent)
    extent.discard()
    arena.retire(extent)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_an_extent_counts_before_it_has_pages(arena: Arena, table: SharedSlotTable) -> None:
    extent = arena.create_extent(table, 8, PAGE)
    assert isinstance(extent, HostExtent)
    assert memory.allocated_bytes(extent.fd) == 0
    assert arena.allocated_bytes >= 8 * PAGE
    assert arena.free_bytes() == arena.capacity_bytes - arena.allocated_bytes


def test_what_is_counted_is_at_least_what_the_kernel_counts(
    arena: Arena, table: SharedSlotTable
) -> None:
    extents = [populated(arena, table, slots) for slots in (4, 8, 16)]
    for extent in extents:
        for index in range(extent.slots):
            table.generations[extent.base + index] = 7
    kernel = sum(memory.allocated_bytes(fd) for fd in (table.fd, *(e.fd for e in extents)))
    assert kernel == (4 + 8 + 16 + 3) * PAGE
    assert arena.allocated_bytes >= kernel


def test_a_retired_extent_gives_its_pages_back_and_counts_no_more(
    arena: Arena, table: SharedSlotTable
) -> None:
    before = arena.free_bytes()
    extent = populated(arena, table, 8)
    extent.holders.add("worker")
    retire(arena, table, extent)
    assert memory.allocated_bytes(extent.fd) == 0
    assert arena.free_bytes() >= before - PAGE
    arena.forget_holder("worker")


def test_pages_that_a_late_reader_brings_back_are_taken_again(
    arena: Arena, table: SharedSlotTable
) -> None:
    extent = populated(arena, table, 8)
    cells = memory.map_shared(extent.fd, 8 * PAGE, writable=True)
    extent.holders.add("worker")
    retire(arena, table, extent)
    counted = arena.allocated_bytes
    cells[0] = 1
    assert memory.allocated_bytes(extent.fd) == PAGE
    assert arena.allocated_bytes == counted
    assert memory.allocated_bytes(extent.fd) == 0
    assert cells[0] == 0
    arena.forget_holder("worker")


def test_a_retired_extent_is_closed_when_its_last_holder_has_unmapped_it(
    arena: Arena, table: SharedSlotTable
) -> None:
    extent = populated(arena, table, 4)
    extent.holders |= {"one", "two"}
    retire(arena, table, extent)
    arena.forget_holder("one", {extent.extent_id + 1})
    arena.forget_holder("one", {extent.extent_id})
    assert is_open(extent.fd)
    arena.forget_holder("two")
    assert not is_open(extent.fd)


def test_an_extent_that_nobody_maps_is_closed_at_once(arena: Arena, table: SharedSlotTable) -> None:
    extent = populated(arena, table, 4)
    retire(arena, table, extent)
    assert not is_open(extent.fd)


def test_a_worker_that_went_before_holds_no_descriptor(
    arena: Arena, table: SharedSlotTable
) -> None:
    extent = populated(arena, table, 4)
    extent.holders.add("worker")
    arena.forget_holder("worker")
    retire(arena, table, extent)
    assert not is_open(extent.fd)


def test_extent_ids_are_not_used_again(arena: Arena, table: SharedSlotTable) -> None:
    ids = []
    for _ in range(3):
        extent = populated(arena, table, 4)
        ids.append(extent.extent_id)
        retire(arena, table, extent)
    assert len(set(ids)) == 3
    assert 0 not in ids


def test_the_first_extent_is_small_and_each_next_one_doubles() -> None:
    arena = Arena(512 * MIB)
    sizes, class_bytes = [], 0
    for _ in range(8):
        slots = arena.next_extent_slots(2 * MIB, class_bytes)
        sizes.append(slots)
        class_bytes += slots * 2 * MIB
    assert sizes == [4, 4, 8, 16, 32, 32, 32, 32]


def test_a_large_arena_has_few_extents() -> None:
    arena = Arena(512 << 30)
    assert arena.next_extent_slots(PAGE, 0) * PAGE == (512 << 30) // 4096
    assert arena.next_extent_slots(2 * MIB, 1 << 40) * 2 * MIB == 1 << 30


def test_a_slot_larger_than_an_extent_is_an_extent_of_its_own() -> None:
    assert Arena(1 << 30).next_extent_slots(512 * MIB, 512 * MIB) == 1


def test_extents_are_cut_to_the_room_that_is_left(arena: Arena, table: SharedSlotTable) -> None:
    while slots := arena.next_extent_slots(PAGE, 1 << 30):
        populated(arena, table, slots)
        assert arena.allocated_bytes <= arena.capacity_bytes
    assert arena.free_bytes() < 2 * PAGE


def test_a_slot_that_does_not_fit_gets_no_extent(arena: Arena) -> None:
    assert arena.next_extent_slots(64 * PAGE, 0) == 0
    assert arena.next_extent_slots(63 * PAGE, 0) == 1


@pytest.mark.parametrize("slot_bytes", [PAGE, MIB, 2 * MIB])
def test_64_tenants_fit_in_one_gibibyte(slot_bytes: int) -> None:
    arena = Arena(1 << 30)
    for number in range(64):
        slots = arena.next_extent_slots(slot_bytes, 0)
        assert slots >= 4, number
        arena.create_extent(arena.create_table(number), slots, slot_bytes)
    assert arena.allocated_bytes <= 1 << 30
    arena.close()


def test_numbers_of_slots_begin_at_whole_pages_of_the_table(
    arena: Arena, table: SharedSlotTable
) -> None:
    extents = [arena.create_extent(table, slots, PAGE) for slots in (4, 20, 4)]
    assert [extent.base for extent in extents] == [0, 512, 1024]
    for extent in extents:
        for slot in (extent.base, extent.base + extent.slots - 1):
            assert table.extent_of(slot) is extent


def test_an_extent_of_many_slots_owns_several_pages(table: SharedSlotTable) -> None:
    assert table.allocate_base(1025) == 0
    assert table.allocated_bytes == 3 * PAGE
    assert len(table.owner) == len(table.references) == 3 * layout.SLOTS_PER_PAGE


def test_numbers_of_a_retired_extent_are_used_again(arena: Arena, table: SharedSlotTable) -> None:
    first, second = populated(arena, table, 4), populated(arena, table, 4)
    retire(arena, table, first)
    third = populated(arena, table, 4)
    assert third.base == first.base != second.base
    assert table.extent_of(third.base) is third
    assert table.allocated_bytes == 2 * PAGE


def test_generations_are_little_endian_u64_by_slot_number(table: SharedSlotTable) -> None:
    table.generations[513] = 0x0102030405060708
    assert os.pread(table.fd, 8, 513 * layout.GENERATION_BYTES) == bytes(range(8, 0, -1))


def test_a_late_reader_of_a_discarded_extent_finds_generation_zero(
    arena: Arena, table: SharedSlotTable
) -> None:
    first, second = populated(arena, table, 4), populated(arena, table, 4)
    for extent in (first, second):
        for index in range(4):
            table.generations[extent.base + index] = 9
    seen = memory.map_shared(table.fd, 2 * PAGE, writable=False).view("<u8")
    table.discard(first)
    assert seen[:4].tolist() == [0] * 4
    assert seen[512:516].tolist() == [9] * 4


def test_readers_cannot_write_generations(table: SharedSlotTable) -> None:
    flags = mmap.MAP_SHARED
    for path in (f"/proc/self/fd/{table.fd}", f"/proc/{os.getpid()}/fd/{table.fd}"):
        fd = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(fd, PAGE, flags, mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            mapped = mmap.mmap(fd, PAGE, flags, mmap.PROT_READ)
            mapped.close()
        finally:
            os.close(fd)
    table.generations[0] = 5
    assert os.pread(table.fd, 1, 0) == b"\5"


@pytest.mark.parametrize("size_bytes", [0, 8 * PAGE])
def test_nobody_changes_the_size_of_an_extent(
    arena: Arena, table: SharedSlotTable, size_bytes: int
) -> None:
    extent = populated(arena, table, 4)
    with pytest.raises(PermissionError):
        os.ftruncate(extent.fd, size_bytes)


def test_cells_are_the_memory_of_the_extent(arena: Arena, table: SharedSlotTable) -> None:
    extent = populated(arena, table, 4, 2 * PAGE)
    extent.cells[3] = 7
    assert os.pread(extent.fd, 2 * PAGE, 6 * PAGE) == b"\7" * (2 * PAGE)
    assert extent.cells.shape == (4, 2 * PAGE)


def test_pages_are_populated_from_the_first_slot_on(arena: Arena, table: SharedSlotTable) -> None:
    extent = arena.create_extent(table, 8, PAGE)
    assert isinstance(extent, HostExtent)
    for done in (2, 4):
        extent.populate(2)
        extent.populated_slots += 2
        assert memory.allocated_bytes(extent.fd) == done * PAGE


def test_cells_are_copied_whole() -> None:
    sources = [np.full(PAGE, number, np.uint8) for number in (1, 2)]
    targets = [np.zeros(PAGE, np.uint8) for _ in sources]
    assert copy_cells(list(zip(sources, targets, strict=True))) == [True, True]
    assert [set(target.tolist()) for target in targets] == [{1}, {2}]

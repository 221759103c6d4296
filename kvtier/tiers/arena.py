"""HOST memory: extents, slots and generations.

Accounting: an arena counts an extent from before its first page is populated until the kernel no
longer counts a page of it, so that the sum never exceeds the capacity.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Container, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kvtier import memory
from kvtier.core import slots as layout
from kvtier.memory import ByteArray
from kvtier.tiers.slot_table import Extent, SlotTable

if TYPE_CHECKING:
    from kvtier.tiers.size_class import SizeClass
    from kvtier.tiers.slot_tier import Move

_FIRST_EXTENT_SLOTS = 4
_FIRST_EXTENT_SHARE = 4096
_MAX_EXTENT_BYTES = 64 << 20
_MAX_EXTENT_SHARE = 512
#: Retired extents that are looked at in one call: a shrunk arena may have hundreds.
_RETIRED_SLICE = 64


class SharedSlotTable(SlotTable):
    """Slots of HOST: workers read the generations from a memfd."""

    def __init__(self, namespace_id: int) -> None:
        size_bytes = layout.TABLE_SLOTS * layout.GENERATION_BYTES
        self.fd = memory.create_memfd(f"kvtier-namespace-{namespace_id}-generations", size_bytes)
        self._memory = memory.map_shared(self.fd, size_bytes, writable=True)
        memory.seal_for_readers(self.fd)
        self._generations = memoryview(self._memory.data).cast("Q")
        super().__init__(namespace_id, self._generations)

    def discard(self, extent: Extent) -> None:
        """Zeroes the generations of an extent, so that late readers fail, and frees its numbers.

        The table's pages stay: nobody may punch holes into a sealed memfd.
        """
        self._memory.view("<u8")[extent.base : extent.base + extent.slots] = 0
        super().discard(extent)

    @property
    def allocated_bytes(self) -> int:
        """Its pages that were ever used."""
        return len(self.extents) * memory.PAGE_BYTES

    def close(self) -> None:
        self._generations.release()
        os.close(self.fd)


class SharedExtent(Extent):
    """One that workers map."""

    def __init__(self, extent_id: int, base: int, slots: int, slot_bytes: int) -> None:
        super().__init__(extent_id, base, slots, slot_bytes)
        #: Attachments that were given it and may still map the memory.
        self.holders: set[Hashable] = set()

    def close(self) -> None:
        """Nobody maps it any more."""
        raise NotImplementedError


class HostExtent(SharedExtent):
    """One memfd of one namespace and size class."""

    def __init__(self, extent_id: int, base: int, slots: int, slot_bytes: int) -> None:
        super().__init__(extent_id, base, slots, slot_bytes)
        self.fd = memory.create_memfd(f"kvtier-extent-{extent_id}", slots * slot_bytes)
        self._memory = memory.map_shared(self.fd, slots * slot_bytes, writable=True)
        self.cells = self._memory.reshape(slots, slot_bytes)
        #: Ends its registration as pinned memory; set by who registered it, or found it impossible.
        self.unpin: Callable[[], None] | None = None

    def populate(self, slots: int) -> None:
        start = self.populated_slots * self.slot_bytes
        memory.populate(self.fd, self._memory, start, slots * self.slot_bytes)

    def discard(self) -> None:
        self._end_pinning()  # else the kernel would keep the pages
        memory.punch_hole(self.fd, 0, self.slots * self.slot_bytes)

    def close(self) -> None:
        self._end_pinning()
        os.close(self.fd)

    def _end_pinning(self) -> None:
        if self.unpin is not None:
            self.unpin()
            self.unpin = None


class Arena:
    """All extents of HOST, within a capacity."""

    def __init__(self, capacity_bytes: int, first_extent_id: int = 1) -> None:
        self.capacity_bytes = capacity_bytes
        self._live: set[SharedExtent] = set()
        self._tables: set[SharedSlotTable] = set()
        self._live_bytes = 0
        self._next_extent_id = first_extent_id
        self._retired: deque[SharedExtent] = deque()
        self._returned_bytes: dict[SharedExtent, int] = {}

    @property
    def allocated_bytes(self) -> int:
        """What counts against the capacity now."""
        tables = sum(table.allocated_bytes for table in self._tables)
        return self._live_bytes + tables + self._retired_bytes()

    def free_bytes(self) -> int:
        return self.capacity_bytes - self.allocated_bytes

    def resize(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    def least_bytes(self) -> int:
        """Pages of tables stay; as much again is for what they are of."""
        return 2 * sum(table.allocated_bytes for table in self._tables)

    def excess_bytes(self) -> dict[int, int]:
        excess = self.allocated_bytes - self.capacity_bytes
        return {HostExtent.stripe: excess} if excess > 0 else {}

    def counted_bytes(self, extent: Extent) -> int:
        return extent.size_bytes

    def next_extent_slots(self, slot_bytes: int, class_bytes: int) -> int:
        """How large the next extent of a size class of so many bytes would be; 0 if none fits."""
        first = max(_FIRST_EXTENT_SLOTS * slot_bytes, self.capacity_bytes // _FIRST_EXTENT_SHARE)
        largest = max(_MAX_EXTENT_BYTES, self.capacity_bytes // _MAX_EXTENT_SHARE, slot_bytes)
        slots = max(1, min(max(first, class_bytes), largest) // slot_bytes)
        room = self.free_bytes()
        fitting = min(slots, room // slot_bytes)
        while fitting > 0 and most_bytes(fitting, slot_bytes) > room:
            fitting -= 1
        return max(fitting, 0)

    def create_table(self, namespace_id: int) -> SharedSlotTable:
        """The slot table of a namespace; its pages count as they come into use."""
        table = SharedSlotTable(namespace_id)
        self._tables.add(table)
        return table

    def drop_table(self, table: SlotTable) -> None:
        """The namespace is forgotten."""
        assert isinstance(table, SharedSlotTable)
        self._tables.remove(table)
        table.close()

    def create_extent(self, table: SlotTable, slots: int, slot_bytes: int) -> SharedExtent:
        """An extent without pages yet; its bytes count from now on."""
        extent = self._make(self._next_extent_id, table.allocate_base(slots), slots, slot_bytes)
        self._next_extent_id += 1
        self._live.add(extent)
        self._live_bytes += extent.size_bytes
        table.install(extent)
        return extent

    def _make(self, extent_id: int, base: int, slots: int, slot_bytes: int) -> SharedExtent:
        return HostExtent(extent_id, base, slots, slot_bytes)

    def retire(self, extent: Extent) -> None:
        """After `discard`: what the kernel still counts keeps counting, until nobody maps it."""
        assert isinstance(extent, SharedExtent)
        self._live.remove(extent)
        self._live_bytes -= extent.size_bytes
        self._retired.append(extent)
        self._forget_unmapped()

    def copying(self, size_class: SizeClass, moves: Sequence[Move]) -> Callable[[], list[bool]]:
        """A call for a mover that copies blocks to other slots."""
        table = size_class.table
        cells = [(cell_of(table, source), cell_of(table, target)) for _, source, target in moves]
        return partial(copy_cells, cells)

    def forget_holder(self, holder: Hashable, extent_ids: Container[int] | None = None) -> None:
        """A worker has unmapped these extents; None: all that it ever mapped."""
        for extent in (*self._retired, *self._live):
            if extent_ids is None or extent.extent_id in extent_ids:
                extent.holders.discard(holder)
        self._forget_unmapped()

    def is_held_by(self, holder: Hashable) -> bool:
        """Whether it may still map an extent."""
        return any(holder in extent.holders for extent in (*self._retired, *self._live))

    def _forget_unmapped(self) -> None:
        for extent in [each for each in self._retired if not each.holders]:
            self._retired.remove(extent)
            self._returned_bytes.pop(extent, None)
            extent.close()

    def _retired_bytes(self) -> int:
        """What late readers brought back; some extents are looked at each time, in turn."""
        for _ in range(min(_RETIRED_SLICE, len(self._retired))):
            extent = self._retired[0]
            assert isinstance(extent, HostExtent)
            self._retired.rotate(-1)
            left = memory.allocated_bytes(extent.fd)
            if left:
                extent.discard()
                left = memory.allocated_bytes(extent.fd)
            if left:
                self._returned_bytes[extent] = left
            else:
                self._returned_bytes.pop(extent, None)
        return sum(self._returned_bytes.values())

    def close(self) -> None:
        for extent in (*self._retired, *self._live):
            extent.close()
        for table in self._tables:
            table.close()
        self._retired.clear()
        self._returned_bytes.clear()
        self._live.clear()
        self._tables.clear()


def most_bytes(slots: int, slot_bytes: int) -> int:
    """What a new extent adds at most: its memory and new pages of the generation table."""
    return slots * slot_bytes + layout.table_pages(slots) * memory.PAGE_BYTES


def cell_of(table: SlotTable, slot: int) -> ByteArray:
    """The memory of a slot of HOST."""
    extent = table.extent_of(slot)
    assert isinstance(extent, HostExtent)
    cell: ByteArray = extent.cells[slot - extent.base]
    return cell


def copy_cells(pairs: list[tuple[ByteArray, ByteArray]]) -> list[bool]:
    """Copies cells from (first) to (second). Called by a mover; releases the GIL per cell."""
    for source, target in pairs:
        np.copyto(target, source)
    return [True] * len(pairs)

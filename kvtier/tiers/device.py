"""The GPU tier: blocks in the memory of one device.

Books, extents, slots and generations are as in HOST. What a device can do is behind `Accelerator`,
so that nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvtier import devices
from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.memory import ByteArray
from kvtier.tiers.arena import Arena, SharedExtent, most_bytes
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent, SlotTable
from kvtier.tiers.slot_tier import Move, SlotTier

#: [slots, slot_bytes]: an array, or a tensor on the device.
Cells = Any


class Completion(Protocol):
    """The end of copies that have begun."""

    def wait(self) -> None:
        """Returns when the bytes are there. Blocks: for movers. Raises OSError if they failed."""
        ...


class DeviceMemory(Protocol):
    """One allocation, cut into cells."""

    @property
    def cells(self) -> Cells: ...

    def handle(self) -> tuple[list[int], list[str | int]]:
        """How one more process opens it: descriptors, which stay ours, and what JSON can say.

        May wait for the device: for movers. Raises OSError if its memory cannot be shared.
        """
        ...

    def close(self) -> None:
        """Gives it back to the device. May wait for the device: for movers."""
        ...


class Accelerator(Protocol):
    """A device. Its methods are called by movers, and may be by several at one time."""

    #: As people see it: `cuda:0 (NVIDIA H100)`.
    name: str
    #: See `devices.identity`.
    identity: str
    #: No allocation is smaller: a smaller one would share memory with others.
    least_extent_bytes: int

    def available_bytes(self) -> int:
        """What can still be allocated."""
        ...

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        """Raises OSError if the device has no more."""
        ...

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        """Begins to copy from the first of each pair to the second. Raises OSError."""
        ...

    def pin(self, cells: ByteArray) -> Callable[[], None]:
        """Registers host memory for copies at full speed; what it returns ends that.

        Raises OSError; copies are slower then, and as right.
        """
        ...

    def close(self) -> None: ...


class DeviceExtent(SharedExtent):
    """One allocation of one namespace and size class."""

    def __init__(
        self, accelerator: Accelerator, extent_id: int, base: int, slots: int, slot_bytes: int
    ) -> None:
        super().__init__(extent_id, base, slots, slot_bytes)
        self.memory: DeviceMemory | None = None
        self.accelerator = accelerator

    @property
    def cells(self) -> Cells:
        assert self.memory is not None, self.extent_id
        return self.memory.cells

    def populate(self, slots: int) -> None:
        """All at once: a device allocates nothing in parts."""
        assert slots == self.slots, slots
        self.memory = self.accelerator.allocate(slots, self.slot_bytes)

    def discard(self) -> None:
        """Workers may still map it, and no hole can be punched into it: see `DeviceArena.free`."""

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()
            self.memory = None


class DeviceArena(Arena):
    """All extents on a device. One that is retired counts until no worker maps it and the device
    has its memory back."""

    def __init__(self, accelerator: Accelerator, number: int, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes, devices.first_extent_id(number))
        self._accelerator = accelerator
        self._freeing_bytes = 0
        #: Closes an extent, then calls `freed`. Freeing may wait for the device.
        self.free: Callable[[SharedExtent], None] = self._free_at_once

    @property
    def is_waiting(self) -> bool:
        """Whether memory that was given up still counts."""
        return bool(self._retired or self._freeing_bytes)

    def freed(self, extent: SharedExtent) -> None:
        """The device has its memory back."""
        self._freeing_bytes -= extent.size_bytes

    def _free_at_once(self, extent: SharedExtent) -> None:
        extent.close()
        self.freed(extent)

    def next_extent_slots(self, slot_bytes: int, class_bytes: int) -> int:
        slots = super().next_extent_slots(slot_bytes, class_bytes)
        least = -(-self._accelerator.least_extent_bytes // slot_bytes)
        if slots >= least:
            return slots
        return least if slots and most_bytes(least, slot_bytes) <= self.free_bytes() else 0

    def _make(self, extent_id: int, base: int, slots: int, slot_bytes: int) -> SharedExtent:
        return DeviceExtent(self._accelerator, extent_id, base, slots, slot_bytes)

    def copying(self, size_class: SizeClass, moves: Sequence[Move]) -> Callable[[], list[bool]]:
        table = size_class.table
        pairs = cell_pairs(table, table, [(source, target) for _, source, target in moves])

        def copy() -> list[bool]:
            self._accelerator.copy(pairs).wait()
            return [True] * len(moves)

        return copy

    def _forget_unmapped(self) -> None:
        for extent in [each for each in self._retired if not each.holders]:
            self._retired.remove(extent)
            self._freeing_bytes += extent.size_bytes
            self.free(extent)

    def _retired_bytes(self) -> int:
        return sum(each.size_bytes for each in self._retired) + self._freeing_bytes


class DeviceTier(SlotTier):
    """Blocks on one device, the `number`-th from 1, never more than `capacity_bytes` of it."""

    def __init__(
        self,
        accelerator: Accelerator,
        number: int,
        capacity_bytes: int,
        *,
        policy: str = "lru",
        admission: str = "always",
        ages: Ages | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.number = number
        self.arena = DeviceArena(accelerator, number, capacity_bytes)
        super().__init__(Tier.GPU, self.arena, policy=policy, admission=admission, ages=ages)

    def donors(self, taker: SizeClass) -> list[SizeClass]:
        """None while workers still map what was given up: to take more would gain nothing yet."""
        return [] if self.arena.is_waiting else super().donors(taker)


def cell_pairs(
    from_table: SlotTable, to_table: SlotTable, slots: Sequence[tuple[int, int]]
) -> list[tuple[Cells, Cells]]:
    """What to copy from slots of HOST or a device to slots of a device; neighbours together."""
    pairs, first = [], 0
    while first < len(slots):
        source, target = slots[first]
        origin, place = from_table.extent_of(source), to_table.extent_of(target)
        most = min(_slots_left(origin, source), _slots_left(place, target), len(slots) - first)
        count = 1
        while count < most and slots[first + count] == (source + count, target + count):
            count += 1
        pairs.append((_cells(origin, source, count), _cells(place, target, count)))
        first += count
    return pairs


def _slots_left(extent: Extent, slot: int) -> int:
    return extent.base + extent.slots - slot


def _cells(extent: Any, slot: int, count: int) -> Cells:
    first = slot - extent.base
    return extent.cells[first : first + count]

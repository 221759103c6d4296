"""The tiers as the suite sees them: one class per tier, so that another is a class more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvtier import memory
from kvtier.core.block import BlockKey, BlockStatus
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.testing import LateAccelerator, payload_for
from kvtier.tiers.arena import HostExtent, SharedSlotTable, cell_of
from kvtier.tiers.device import Accelerator, DeviceExtent, DeviceTier
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.slab import Fetched, Filling, Slab
from kvtier.tiers.disk.tier import DiskTier, slab_of
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.emulated import EmulatedAccelerator
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent
from kvtier.tiers.slot_tier import SlotTier

PAGE = 4096


def aligned(size_bytes: int) -> ByteArray:
    """Zeros, as O_DIRECT wants them."""
    buffer = np.zeros(size_bytes + PAGE, np.uint8)
    start = -buffer.ctypes.data % PAGE
    return buffer[start : start + size_bytes]


class Space:
    """A tier, and what the suite must know of it beside `SlotTier`."""

    tier: SlotTier
    #: How large the first extents of a class are, in slots of PAGE bytes, doubling from then on.
    first_slots = 4
    stripes = 1

    def size_class(self, namespace: int = 1, block_bytes: int = PAGE) -> SizeClass:
        return self.tier.size_class(namespace, block_bytes)

    def counted_bytes(self) -> int:
        """What the kernel counts."""
        raise NotImplementedError

    def write(self, size_class: SizeClass, key: BlockKey, slot: int) -> None:
        """Puts the bytes of a key into a slot that is taken."""
        raise NotImplementedError

    def is_whole(self, size_class: SizeClass, key: BlockKey, slot: int) -> bool:
        """Whether a slot has the bytes of a key."""
        raise NotImplementedError

    def spoil(self, size_class: SizeClass, slot: int) -> bool:
        """Changes a byte behind the tier's back; False if the tier could not tell."""
        raise NotImplementedError

    # What an agent does between two decisions of a tier.

    def populate(self, size_class: SizeClass, extent: Extent, slots: int | None = None) -> None:
        count = extent.slots if slots is None else slots
        extent.populate(count)
        size_class.publish(extent, count)

    def grow(self, size_class: SizeClass) -> Extent:
        extent = self.tier.grow(size_class)
        self.populate(size_class, extent)
        return extent

    def grow_to(self, size_class: SizeClass, slots: int) -> None:
        while size_class.free_slots < slots:
            self.grow(size_class)

    def give_back(self, size_class: SizeClass, extent: Extent) -> None:
        """What follows `on_idle`."""
        self.tier.discard(size_class, extent)
        extent.discard()
        self.tier.space.retire(extent)

    def store(self, size_class: SizeClass, key: BlockKey) -> int:
        """Its slot; -1 if there was none."""
        slots = size_class.take(1)
        for slot in slots:
            self.write(size_class, key, slot)
            assert size_class.commit(*key, slot) is BlockStatus.OK
        size_class.release(slots)
        return slots[0] if slots else -1

    def move(self, size_class: SizeClass, rows: list[int]) -> list[bool]:
        """Moves blocks to other slots of their class."""
        table = size_class.table
        sources = size_class.slots_of(rows)
        generations = [table.generations[slot] for slot in sources]
        targets = size_class.take(len(rows))
        held = size_class.acquire(rows)
        moves = list(zip(rows, sources, targets, strict=True))
        whole = self.tier.space.copying(size_class, moves)()
        for (row, source, target), generation, is_whole in zip(
            moves, generations, whole, strict=True
        ):
            if is_whole:
                assert size_class.move(row, source, generation, target)
        size_class.release(targets)
        size_class.release(held)
        return whole

    def close(self) -> None:
        self.tier.close()


def payload(key: BlockKey, slot_bytes: int) -> ByteArray:
    return payload_for(key.block_hash, slot_bytes)


class HostSpace(Space):
    def __init__(self, path: Path, pages: int) -> None:
        self.tier = self.host = HostTier(pages * PAGE)
        self._fds: dict[Extent, int] = {}

    def grow(self, size_class: SizeClass) -> Extent:
        extent = super().grow(size_class)
        assert isinstance(extent, HostExtent)
        self._fds[extent] = extent.fd
        extent.holders.add("suite")  # keeps the descriptor, so that what is counted can be seen
        return extent

    def counted_bytes(self) -> int:
        tables = {
            each.table.fd for each in self.host.classes if isinstance(each.table, SharedSlotTable)
        }
        return sum(map(memory.allocated_bytes, [*self._fds.values(), *tables]))

    def write(self, size_class: SizeClass, key: BlockKey, slot: int) -> None:
        np.copyto(cell_of(size_class.table, slot), payload(key, size_class.slot_bytes))

    def is_whole(self, size_class: SizeClass, key: BlockKey, slot: int) -> bool:
        cell = cell_of(size_class.table, slot)
        return bool(np.array_equal(cell, payload(key, size_class.slot_bytes)))

    def spoil(self, size_class: SizeClass, slot: int) -> bool:
        return False

    def close(self) -> None:
        self.host.arena.forget_holder("suite")
        super().close()


class DiskSpace(Space):
    def __init__(self, path: Path, pages: int, volumes: int = 1) -> None:
        self.stripes = volumes
        self.paths = [path / f"volume-{number}" for number in range(volumes)]
        # Each volume has a reserve, and each slab what the file system may add to it.
        share = pages * PAGE * 3 // volumes
        self.tier = self.disk = DiskTier(
            [
                Volume(BlockIO(), each, share, stripe=number)
                for number, each in enumerate(self.paths)
            ]
        )

    def size_class(self, namespace: int = 1, block_bytes: int = PAGE) -> SizeClass:
        spec = NamespaceSpec(name=f"n{namespace}", block_bytes=(block_bytes,))
        self.disk.slabs.register(namespace, spec, bytes(16))
        return super().size_class(namespace, block_bytes)

    def counted_bytes(self) -> int:
        found = [path for each in self.paths for path in (each, *each.rglob("*"))]
        return sum(each.stat().st_blocks * 512 for each in found)

    def write(self, size_class: SizeClass, key: BlockKey, slot: int) -> None:
        slab, cell = slab_of(size_class, slot), aligned(size_class.slot_bytes)
        np.copyto(cell, payload(key, size_class.slot_bytes))
        sequence = size_class.table.generations[slot]
        filling = Filling(slot - slab.base, sequence, cell, size_class.slot_bytes, key)
        slab.store(self.disk.slabs.tenancy(size_class).identity, [filling])

    def is_whole(self, size_class: SizeClass, key: BlockKey, slot: int) -> bool:
        slab, cell = slab_of(size_class, slot), aligned(size_class.slot_bytes)
        [fetched] = slab.fetch([slot - slab.base], [cell], [size_class.slot_bytes])
        return fetched is Fetched.WHOLE and bool(
            np.array_equal(cell, payload(key, size_class.slot_bytes))
        )

    def spoil(self, size_class: SizeClass, slot: int) -> bool:
        slab = slab_of(size_class, slot)
        with slab.data_path.open("r+b") as file:
            file.seek((slot - slab.base) * slab.slot_bytes)
            [byte] = file.read(1)
            file.seek((slot - slab.base) * slab.slot_bytes)
            file.write(bytes([byte ^ 0x10]))
        return True

    def reopened(self) -> Iterator[Slab]:
        """The slabs as a start finds them; their bytes count on."""
        for volume in self.disk.slabs.volumes:
            for header in volume.headers():
                yield Slab(volume, header, 0, 0)


class DeviceSpace(Space):
    """As HOST; what is allocated is seen by what its memfds have."""

    def __init__(self, accelerator: Accelerator, pages: int) -> None:
        self.accelerator = accelerator
        self.tier = self.device = DeviceTier(accelerator, 1, pages * PAGE)
        self._memory: list[DeviceExtent] = []

    def populate(self, size_class: SizeClass, extent: Extent, slots: int | None = None) -> None:
        super().populate(size_class, extent, slots)
        assert isinstance(extent, DeviceExtent)
        self._memory.append(extent)

    def counted_bytes(self) -> int:
        fds = {
            each.table.fd for each in self.device.classes if isinstance(each.table, SharedSlotTable)
        }
        for extent in self._memory:
            if extent.memory is not None:
                fds.update(extent.memory.handle()[0])
        return sum(map(memory.allocated_bytes, fds))

    def _cell(self, size_class: SizeClass, slot: int) -> ByteArray:
        extent = size_class.table.extent_of(slot)
        assert isinstance(extent, DeviceExtent)
        return np.asarray(extent.cells[slot - extent.base])

    def write(self, size_class: SizeClass, key: BlockKey, slot: int) -> None:
        extent = size_class.table.extent_of(slot)
        assert isinstance(extent, DeviceExtent)
        source = payload(key, size_class.slot_bytes)
        self.accelerator.copy([(source, extent.cells[slot - extent.base])]).wait()

    def is_whole(self, size_class: SizeClass, key: BlockKey, slot: int) -> bool:
        cell = self._cell(size_class, slot)
        return bool(np.array_equal(cell, payload(key, size_class.slot_bytes)))

    def spoil(self, size_class: SizeClass, slot: int) -> bool:
        return False

    def close(self) -> None:
        super().close()
        self.accelerator.close()


@dataclass(frozen=True)
class Kind:
    """A way to make a space of so many pages, or a little more."""

    name: str
    make: Callable[[Path, int], Space]

    @contextmanager
    def open(self, path: Path, pages: int = 512) -> Iterator[Space]:
        space = self.make(path, pages)
        try:
            yield space
        finally:
            space.close()


KINDS = (
    Kind("host", HostSpace),
    Kind("gpu", lambda path, pages: DeviceSpace(EmulatedAccelerator(), pages)),
    Kind(
        "gpu-late",
        lambda path, pages: DeviceSpace(LateAccelerator(delay_seconds=0.0), pages),
    ),
    Kind("disk", DiskSpace),
    Kind("disk-of-two-volumes", lambda path, pages: DiskSpace(path, pages, volumes=2)),
)

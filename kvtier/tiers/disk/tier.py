"""The DISK tier: size classes that share the slabs of all volumes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.core.namespace import NamespaceSpec, identity_digest, namespace_digest
from kvtier.memory import ByteArray
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.io import ALIGNMENT_BYTES
from kvtier.tiers.disk.slab import Fetched, Filling, Slab, slab_bytes
from kvtier.tiers.disk.volume import Volume, slots_within
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent, SlotTable
from kvtier.tiers.slot_tier import Move, SlotTier

_FIRST_SLAB_SLOTS = 4
_FIRST_SLAB_SHARE = 4096
_MAX_SLAB_BYTES = 256 << 20
_LEAST_SLABS = 16
_MAX_SLAB_SHARE = 512


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What records and headers say of a namespace."""

    namespace: bytes
    identity: bytes
    block_bytes: tuple[int, ...]


class DiskSlotTable(SlotTable):
    """Slots of DISK. A generation is the sequence in the slot's record."""

    def __init__(self, namespace_id: int) -> None:
        self._generations = array("Q")
        super().__init__(namespace_id, self._generations)

    def allocate_base(self, slots: int) -> int:
        base = super().allocate_base(slots)
        self._generations.extend([0] * (len(self.owner) - len(self._generations)))
        return base


class Slabs:
    """The space of DISK: slabs in one or several volumes."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes
        self.capacity_bytes = sum(each.capacity_bytes for each in volumes)
        self._tenancies: dict[int, Tenancy] = {}
        self._next_id = 1
        self._live: set[Slab] = set()

    @property
    def allocated_bytes(self) -> int:
        return sum(each.allocated_bytes for each in self.volumes)

    def resize(self, capacity_bytes: int) -> None:
        for volume in self.volumes:
            volume.capacity_bytes = capacity_bytes // len(self.volumes)
        self.capacity_bytes = sum(each.capacity_bytes for each in self.volumes)

    @property
    def least_bytes(self) -> int:
        return 0

    def excess_bytes(self) -> dict[int, int]:
        return {each.stripe: each.excess_bytes for each in self.volumes if each.excess_bytes > 0}

    def counted_bytes(self, extent: Extent) -> int:
        assert isinstance(extent, Slab)
        return slab_bytes(extent.header)

    def register(self, namespace_id: int, spec: NamespaceSpec, generation_id: bytes) -> None:
        """Makes a namespace known, or its new generation."""
        self._tenancies[namespace_id] = Tenancy(
            namespace_digest(spec),
            identity_digest(spec, generation_id),
            spec.block_bytes,
        )

    def tenancy(self, size_class: SizeClass) -> Tenancy:
        return self._tenancies[size_class.table.namespace_id]

    def next_extent_slots(self, slot_bytes: int, class_bytes: int) -> int:
        room = max(each.growth_bytes for each in self.volumes)
        first = max(_FIRST_SLAB_SLOTS * slot_bytes, self.capacity_bytes // _FIRST_SLAB_SHARE)
        largest = max(
            min(_MAX_SLAB_BYTES, self.capacity_bytes // _LEAST_SLABS),
            self.capacity_bytes // _MAX_SLAB_SHARE,
            slot_bytes,
        )
        slots = max(1, min(max(first, class_bytes), largest) // slot_bytes)
        return min(slots, slots_within(room, slot_bytes))

    def create_table(self, namespace_id: int) -> SlotTable:
        return DiskSlotTable(namespace_id)

    def drop_table(self, table: SlotTable) -> None:
        self._tenancies.pop(table.namespace_id, None)

    def create_extent(self, table: SlotTable, slots: int, slot_bytes: int) -> Slab:
        volume = max(self.volumes, key=lambda each: each.growth_bytes)
        namespace = self._tenancies[table.namespace_id].namespace
        return self.adopt(table, volume, volume.new_header(namespace, slots, slot_bytes))

    def adopt(self, table: SlotTable, volume: Volume, header: fmt.SlabHeader) -> Slab:
        """A slab whose bytes the volume counts already."""
        base = table.allocate_base(header.slots)
        slab = Slab(volume, header, self._next_id, base)
        self._next_id += 1
        table.install(slab)
        self._live.add(slab)
        return slab

    def retire(self, extent: Extent) -> None:
        assert isinstance(extent, Slab)
        self._live.discard(extent)
        self.volumes[extent.stripe].slab_gone(extent)

    def copying(self, size_class: SizeClass, moves: Sequence[Move]) -> Callable[[], list[bool]]:
        tenancy, table = self.tenancy(size_class), size_class.table
        jobs = []
        for row, source, target in moves:
            key = size_class.residency.key(row)
            from_slab, to_slab = slab_of(size_class, source), slab_of(size_class, target)
            filling = Filling(
                target - to_slab.base,
                table.generations[target],
                _aligned(size_class.slot_bytes),
                tenancy.block_bytes[key.lane.group],
                key,
                size_class.lifetimes.unix_seconds(size_class.lifetimes.stored_at(row)),
            )
            jobs.append((from_slab, source - from_slab.base, to_slab, filling))

        def copy() -> list[bool]:
            done = []
            for source, slot, target, filling in jobs:
                [fetched] = source.fetch([slot], [filling.cell], [filling.length])
                if fetched is Fetched.WHOLE:
                    target.store(tenancy.identity, [filling], is_ordered=True)
                done.append(fetched is Fetched.WHOLE)
            for slab in {id(target): target for _, _, target, _ in jobs}.values():
                slab.sync()  # the source goes, and with it what was synced
            return done

        return copy

    def close(self, hung_stripes: Collection[int] = ()) -> None:
        """Closes every file, but not where threads hang: a descriptor might be used again."""
        for slab in self._live:
            if slab.stripe not in hung_stripes:
                slab.close()
        for volume in self.volumes:
            volume.close()


class DiskTier(SlotTier):
    """Blocks in slab files."""

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        policy: str = "lru",
        admission: str = "always",
        ages: Ages | None = None,
    ) -> None:
        self.slabs = Slabs(volumes)
        super().__init__(Tier.DISK, self.slabs, policy=policy, admission=admission, ages=ages)

    def all_slabs(self) -> list[tuple[SizeClass, Slab]]:
        return [
            (size_class, extent)
            for size_class in self.classes
            for extent in size_class.extents
            if isinstance(extent, Slab)
        ]


def slab_of(size_class: SizeClass, slot: int) -> Slab:
    extent = size_class.table.extent_of(slot)
    assert isinstance(extent, Slab)
    return extent


def _aligned(size_bytes: int) -> ByteArray:
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes]

"""Behaviour of `kvtier.tiers.disk.tier` beyond what all tiers do (tests/conformance)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.core.namespace import NamespaceSpec, identity_digest, namespace_digest
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.tier import DiskTier
from kvtier.tiers.disk.volume import Volume
from tests.conformance.spaces import PAGE, DiskSpace

MIB = 1 << 20


@pytest.mark.parametrize(
    ("capacity", "first", "largest"),
    [
        (64 * MIB, 4 * PAGE, 4 * MIB),  # sixteen slabs at least
        (8 << 30, 2 * MIB, 256 * MIB),
        (1 << 40, (1 << 40) // 4096, (1 << 40) // 512),
    ],
)
def test_slabs_grow_with_the_class_up_to_a_size(
    tmp_path: Path, capacity: int, first: int, largest: int
) -> None:
    volume = Volume(BlockIO(), tmp_path, capacity)
    tier = DiskTier([volume])
    assert tier.slabs.next_extent_slots(PAGE, 0) * PAGE == first
    assert tier.slabs.next_extent_slots(PAGE, 1 << 50) * PAGE == largest
    assert tier.slabs.next_extent_slots(PAGE, 8 * MIB if largest > 8 * MIB else first) * PAGE == (
        8 * MIB if largest > 8 * MIB > first else first
    )
    tier.close()


def test_a_slab_is_made_where_most_room_is(tmp_path: Path) -> None:
    volumes = [
        Volume(BlockIO(), tmp_path / str(number), size * MIB, stripe=number)
        for number, size in enumerate((1, 2))
    ]
    tier = DiskTier(volumes)
    tier.slabs.register(1, NamespaceSpec(name="a", block_bytes=(PAGE,)), bytes(16))
    size_class = tier.size_class(1, PAGE)
    stripes = []
    while tier.can_grow(size_class):
        extent = tier.grow(size_class)
        size_class.publish(extent, extent.slots)
        stripes.append(extent.stripe)
    assert stripes[0] == 1
    assert set(stripes) == {0, 1}
    assert tier.slabs.allocated_bytes <= 3 * MIB
    tier.close()


def test_headers_name_the_namespace_and_records_its_generation(tmp_path: Path) -> None:
    space = DiskSpace(tmp_path, 512)
    size_class = space.size_class()
    spec = NamespaceSpec(name="n1", block_bytes=(PAGE,))
    tenancy = space.disk.slabs.tenancy(size_class)
    assert tenancy.namespace == namespace_digest(spec)
    assert tenancy.identity == identity_digest(spec, bytes(16))
    space.disk.slabs.register(1, spec, bytes(range(16)))
    renewed = space.disk.slabs.tenancy(size_class)
    assert renewed.namespace == tenancy.namespace
    assert renewed.identity == identity_digest(spec, bytes(range(16)))
    space.close()

"""Directories of DISK as an agent left them, and ways to spoil copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtier import NamespaceSpec
from kvtier.core.block import Lane
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.slab import Slab
from kvtier.tiers.size_class import SizeClass
from tests.crash.node import Node, Sizes
from tests.faults.blocks import hashes_of


@dataclass(frozen=True)
class Place:
    """Where a block is: the stem of its slab's files, and its slot there."""

    stem: str
    slot: int


@dataclass(frozen=True)
class Image:
    """A directory, the blocks in it, and its slabs by the stem of their files."""

    path: Path
    spec: NamespaceSpec
    places: dict[bytes, Place]
    headers: dict[str, fmt.SlabHeader]

    @property
    def hashes(self) -> list[bytes]:
        return list(self.places)

    def copy_to(self, path: Path) -> Path:
        """A copy, in place of what was there."""
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.path, path)
        return path

    def take(self, path: Path) -> None:
        """Copies what an agent that has stopped left in a directory."""
        shutil.copytree(path, self.path)


async def fill(node: Node, spec: NamespaceSpec, sequence: str, count: int) -> list[bytes]:
    """Stores chains of 16 blocks and flushes them; their hashes."""
    stored = []
    for first in range(0, count, 16):
        hashes = hashes_of(f"{sequence}/{first}", min(16, count - first))
        stored += await node.store(spec, hashes)
        await node.disk.demotion.flush()
    return stored


async def image_of(
    node: Node, directory: Path, path: Path, spec: NamespaceSpec, hashes: Sequence[bytes]
) -> Image:
    """Stops a node that has its blocks in one directory, and keeps a copy of that."""
    size_class = disk_class(node, spec)
    places = {}
    for block_hash in hashes:
        row = size_class.residency.find(Lane(), block_hash)
        slot = size_class.residency.slot[row]
        slab = size_class.table.extent_of(slot)
        assert isinstance(slab, Slab)
        places[block_hash] = Place(slab.name, slot - slab.base)
    headers = {slab.name: slab.header for _, slab in node.disk.tier.all_slabs()}
    await node.stop()
    image = Image(path, spec, places, headers)
    image.take(directory)
    return image


def disk_class(node: Node, spec: NamespaceSpec) -> SizeClass:
    """The size class of DISK for the blocks of a namespace."""
    return node.disk.tier.size_class(node.session(spec).namespace.namespace_id, spec.block_bytes[0])


async def read_all(
    path: Path, spec: NamespaceSpec, hashes: Sequence[bytes], sizes: Sizes
) -> tuple[Node, set[bytes]]:
    """A node that has read everything: none may be wrong; what was right. To be stopped."""
    node = Node([path], sizes)
    await node.start()
    answer = await node.load(spec, hashes)
    assert answer.wrong == []
    node.audit()
    return node, set(answer.right)

"""What the model remembers: keys, what was committed under them, and what workers hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from kvtier.agent.sessions.sessions import Attachment, Session
from kvtier.core import slots as layout
from kvtier.core.block import BlockKeys, Lane
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.testing import payload_for
from kvtier.tiers.arena import HostExtent, SharedSlotTable
from kvtier.tiers.slot_table import Extent, SlotTable

SPECS = (
    # A hybrid model: two KV groups of different sizes.
    NamespaceSpec(name="hybrid", block_bytes=(4096, 8192)),
    # Two shards; blocks that do not fill their slots.
    NamespaceSpec(name="sharded", block_bytes=(3000,), shards=2),
)
LANES = ((Lane(0), Lane(1)), (Lane(0, 0), Lane(0, 1)))
LENGTH = 8
#: Sequences share the beginning of the first one, up to here.
FORKS = (LENGTH, 2, 5)


@dataclass(frozen=True)
class Key:
    """A block of the model: where it is, and its place in the tree of prefixes."""

    space: int
    lane: Lane
    sequence: int
    position: int

    @property
    def block_hash(self) -> bytes:
        # The same in every namespace and lane, as for equal tokens.
        return hashlib.sha256(f"{self.sequence} {self.position}".encode()).digest()

    @property
    def parent(self) -> Key | None:
        if not self.position:
            return None
        return key_at(self.space, self.lane, self.sequence, self.position - 1)

    @property
    def block_bytes(self) -> int:
        return SPECS[self.space].block_bytes[self.lane.group]


def key_at(space: int, lane: Lane, sequence: int, position: int) -> Key:
    return Key(space, lane, sequence if position >= FORKS[sequence] else 0, position)


def all_keys() -> list[Key]:
    keys = {
        key_at(space, lane, sequence, position): None
        for space, lanes in enumerate(LANES)
        for lane in lanes
        for sequence in range(len(FORKS))
        for position in range(LENGTH)
    }
    return list(keys)


@dataclass(frozen=True)
class Path:
    """Consecutive blocks of one sequence, as a call names them."""

    space: int
    lane: Lane
    sequence: int
    start: int
    count: int

    @property
    def keys(self) -> list[Key]:
        stop = min(self.start + self.count, LENGTH)
        return [
            key_at(self.space, self.lane, self.sequence, position)
            for position in range(self.start, stop)
        ]

    @property
    def block_keys(self) -> BlockKeys:
        keys = self.keys
        parent = keys[0].parent
        hashes = tuple(key.block_hash for key in keys)
        return BlockKeys(self.lane, hashes, parent.block_hash if parent else b"", self.start)


@lru_cache(maxsize=4096)
def payload(key: Key, version: int) -> ByteArray:
    """No two versions of a key, and no two keys anywhere, have the same bytes."""
    scope = f"{key.space} {key.lane} {version}"
    return payload_for(key.block_hash, key.block_bytes, namespace=scope)


@dataclass(frozen=True)
class Cell:
    """A slot as a worker sees it that has mapped its extent."""

    table: SharedSlotTable
    extent: HostExtent
    index: int
    generation: int

    @property
    def slot(self) -> int:
        return self.extent.base + self.index

    @property
    def is_current(self) -> bool:
        """The reader's check; read so that a page the agent has given back stays away."""
        offset = self.slot * layout.GENERATION_BYTES
        data = os.pread(self.table.fd, layout.GENERATION_BYTES, offset)
        return self.generation == int.from_bytes(data, "little")

    def holds(self, key: Key, version: int) -> bool:
        data = self.extent.cells[self.index, : key.block_bytes]
        return bool(np.array_equal(data, payload(key, version)))

    def write(self, data: ByteArray) -> None:
        self.extent.cells[self.index, : len(data)] = data

    def spoil(self) -> None:
        self.extent.cells[self.index] = 0xEE


@dataclass
class Reading:
    """Blocks that a worker has loaded, or a scheduler holds; kept after the lease has ended."""

    session: Session
    lease_id: int
    deadline: float
    blocks: list[tuple[Key, int, Cell]]
    released: bool = False

    def is_due(self, now: float) -> bool:
        connected = self.session.attachment.connected
        return not self.released and connected and now < self.deadline


@dataclass
class Writing:
    """Reserved slots. The worker may write until it gives them back or is gone."""

    session: Session
    lease_id: int
    deadline: float
    path: Path
    cells: list[Cell | None]
    versions: list[int] = field(default_factory=list)

    @property
    def indexes(self) -> list[int]:
        return [index for index, cell in enumerate(self.cells) if cell is not None]


def cell_at(table: SlotTable, extent: Extent, index: int, generation: int) -> Cell:
    """A slot of HOST."""
    assert isinstance(table, SharedSlotTable)
    assert isinstance(extent, HostExtent)
    return Cell(table, extent, index, generation)


def overlap(cells: Sequence[Cell], others: Sequence[Cell]) -> bool:
    mine = {(id(cell.table), cell.slot) for cell in cells}
    return any((id(cell.table), cell.slot) in mine for cell in others)


def writer_of(writing: Writing) -> Attachment:
    return writing.session.attachment

"""What an earlier run of the agent left on DISK."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kvtier import memory
from kvtier.agent.moving.storage_mover import StorageMover
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.turns import READ_SLICE, slices
from kvtier.core.block import BlockKey, Tier
from kvtier.core.namespace import namespace_digest
from kvtier.core.residency import NONE
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.slab import PIECE_SLOTS, Slab
from kvtier.tiers.disk.tier import DiskTier
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)

_ADOPT_SLICE = 128


class Recovery:
    """Reads the tables of all slabs, no payload, while the agent serves.

    Nothing is written to DISK before its end: only then the greatest sequence is known.
    """

    def __init__(
        self, disk: DiskTier, movers: Sequence[StorageMover[Volume]], namespaces: Namespaces
    ) -> None:
        self._disk = disk
        self._movers = movers
        self._namespaces = namespaces
        self.last_sequence = 0
        self.damaged_count = 0
        self.slot_count = 0

    async def run(self) -> None:
        """Returns when all is read that can be read."""
        started = time.monotonic()
        slabs = [each for mover in self._movers for each in await self._open(mover)]
        for size_class, slab, identity in slabs:
            await self._read(size_class, slab, identity)
        for size_class in {size_class for size_class, _, _ in slabs}:
            await self._admit(size_class)
        self._disk.continue_after(self.last_sequence)
        memory.trim()
        blocks = sum(len(each.residency) for each in self._disk.classes)
        seconds = time.monotonic() - started
        log.info(
            "DISK: %d blocks in %d slabs; %d slots read in %.2f s, %d damaged",
            blocks,
            len(slabs),
            self.slot_count,
            seconds,
            self.damaged_count,
        )

    async def _open(self, mover: StorageMover[Volume]) -> list[tuple[SizeClass, Slab, bytes]]:
        opened = []
        try:
            headers = await mover.run(lambda: list(mover.storage.headers()))
        except OSError as error:
            log.error("DISK %s cannot be read: %s", mover.storage.path, error)
            return []
        by_digest = {namespace_digest(each.spec): each for each in self._namespaces}
        for header in headers:
            size_class = _class_for(by_digest.get(header.namespace), header.slot_bytes)
            if size_class is None:
                await self._set_aside(mover, Slab(mover.storage, header, 0, 0))
                continue
            slab = self._disk.slabs.adopt(size_class.table, mover.storage, header)
            slab.populated_slots, slab.withheld = slab.slots, True
            size_class.extents.append(slab)
            try:
                await mover.run(slab.open)
            except OSError as error:
                log.error("%s cannot be opened: %s", slab.name, error)
                continue  # withheld, and found again by another start
            opened.append((size_class, slab, self._disk.slabs.tenancy(size_class).identity))
        return opened

    async def _set_aside(self, mover: StorageMover[Volume], slab: Slab) -> None:
        """Its blocks are of no namespace that namespaces.json knows."""
        log.warning("%s belongs to no namespace that is known: set aside", slab.data_path)
        slab.is_set_aside = True
        try:
            await mover.run(slab.discard)
        except OSError as error:
            log.error("%s: %s", slab.data_path, error)
        else:
            mover.storage.slab_gone(slab)

    async def _read(self, size_class: SizeClass, slab: Slab, identity: bytes) -> None:
        mover = self._movers[slab.stripe]
        for first in range(0, slab.slots, PIECE_SLOTS):
            try:
                records = await mover.run(slab.records, identity, first)
            except OSError as error:
                log.error("%s: its table cannot be read: %s", slab.name, error)
                continue
            await self._adopt(size_class, slab, records)
            self.slot_count += min(PIECE_SLOTS, slab.slots - first)
            self.damaged_count += records.damaged
        size_class.restore(slab)

    async def _adopt(self, size_class: SizeClass, slab: Slab, records: fmt.Records) -> None:
        lengths = self._disk.slabs.tenancy(size_class).block_bytes
        slab.digests[records.slots] = records.digests
        self.last_sequence = max(self.last_sequence, max(records.sequences, default=0))
        order = np.argsort(records.sequences, kind="stable").tolist()
        for first in range(0, len(order), _ADOPT_SLICE):
            part = order[first : first + _ADOPT_SLICE]
            since = self._disk.ages.from_unix
            stored = {slab.base + records.slots[at]: since(records.stored_at[at]) for at in part}
            size_class.adopt(slab, _blocks(records, part, slab.base, lengths), stored)
            await asyncio.sleep(0)

    async def _admit(self, size_class: SizeClass) -> None:
        """Only the ends of sequences can be evicted; which those are is known at the end."""
        residency, generations = size_class.residency, size_class.table.generations
        rows = [row for row in range(residency.row_count) if residency.slot[row] != NONE]
        rows.sort(key=lambda row: generations[residency.slot[row]])
        async for part in slices(len(rows), READ_SLICE):
            here = [row for row in rows[part] if residency.slot[row] != NONE]
            size_class.policy.touch(here[::-1])  # slabs were read in another order
            size_class.admit(here)


def _blocks(
    records: fmt.Records, indexes: Iterable[int], base: int, lengths: Sequence[int]
) -> Iterator[tuple[BlockKey, int, int]]:
    """Key, slot and generation of those records that fit their namespace."""
    for index in indexes:
        lane = records.lanes[index]
        if lane.group < len(lengths) and records.lengths[index] == lengths[lane.group]:
            key = BlockKey(
                lane, records.hashes[index], records.parents[index], records.positions[index]
            )
            yield key, base + records.slots[index], records.sequences[index]


def _class_for(namespace: Namespace | None, slot_bytes: int) -> SizeClass | None:
    if namespace is None:
        return None
    classes = namespace.classes_of(Tier.DISK)
    return next((each for each in classes if each.slot_bytes == slot_bytes), None)

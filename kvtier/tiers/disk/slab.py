"""One slab: a file of slots, and the table that says what is in them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xxhash

from kvtier.core.block import BlockKey
from kvtier.memory import ByteArray
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.io import open_direct, read_fully, write_fully
from kvtier.tiers.slot_table import Extent

if TYPE_CHECKING:
    from kvtier.tiers.disk.volume import Volume

T = TypeVar("T")

#: Records read at a time: a piece is decoded without holding up anybody for long.
PIECE_SLOTS = 2048
ASIDE = "aside"
#: What a file system may add to a large file to remember where it is.
SLAB_OVERHEAD_BYTES = 64 << 10
#: Growing stops so far above `min_free`, so that small files do not bring the device below it.
DEVICE_MARGIN_BYTES = 256 << 10
#: Of one call: a kernel that is not preemptible keeps the processor for as long as it prepares it.
_MAX_RUN_BYTES = 2 << 20
_MOST_DAMAGED_SHARE = 16
_FEWEST_DAMAGED = 8
_MOST_TORN_SHARE = 2
_FEWEST_TORN = 32


class Fetched(Enum):
    """What became of reading a block."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Filling:
    """A block to be written: where to, from which memory (a whole slot), its key, and when it was
    stored (Unix seconds, 0 if unknown)."""

    slot: int
    sequence: int
    cell: ByteArray
    length: int
    key: BlockKey
    stored_at: int = 0


class NoRoomError(OSError):
    """There is no room for another slab on the device; those that are there go on."""


class Slab(Extent):
    """An extent on disk. What touches its files is called by movers, several at a time.

    A slot is written payload first, then its record. Nobody reads a slot while it is written: the
    books see to that. `digests` is [slots, 16].
    """

    def __init__(self, volume: Volume, header: fmt.SlabHeader, extent_id: int, base: int) -> None:
        super().__init__(extent_id, base, header.slots, header.slot_bytes)
        self.volume = volume
        self.header = header
        self.stripe = volume.stripe
        self.is_direct = True
        self.digests = np.zeros((header.slots, fmt.DIGEST_BYTES), np.uint8)
        #: Slots written since the last good sync.
        self.unsynced: set[int] = set()
        self.is_set_aside = False
        self.damaged: set[int] = set()
        self._torn_count = 0
        self._io = volume.io
        self._directory = volume.path
        self._data_fd = self._table_fd = -1
        self._closing = threading.Lock()

    @property
    def name(self) -> str:
        return f"slab-{self.header.slab_id.hex()}"

    @property
    def table_path(self) -> Path:
        return self._directory / f"{self.name}.table"

    @property
    def data_path(self) -> Path:
        return self._directory / f"{self.name}.data"

    @property
    def is_beyond_repair(self) -> bool:
        """So many of its slots are damaged that the rest is not to be trusted either."""
        return len(self.damaged) >= max(
            _FEWEST_DAMAGED, self.slots // _MOST_DAMAGED_SHARE
        ) or self._torn_count >= max(_FEWEST_TORN, self.slots // _MOST_TORN_SHARE)

    def note_damage(self, slot: int, *, is_recovered: bool) -> None:
        """A slot is not what it should be. In one that was found at the start that says less: what
        was not synced when the power failed is torn."""
        if is_recovered:
            self._torn_count += 1
        else:
            self.damaged.add(slot)

    def open(self) -> None:
        """Opens files that are there. Raises OSError."""
        self._table_fd = self._io.open(self.table_path, os.O_RDWR)
        self._data_fd, self.is_direct = open_direct(self._io, self.data_path, os.O_RDWR)
        self.volume.slab_opened(self)

    def populate(self, slots: int) -> None:
        """Makes both files, all of their bytes allocated; the header last.

        Raises NoRoomError if the device has not so much space, else OSError.
        """
        self.discard()  # what an earlier attempt left
        self.volume.make_way()
        try:
            self.volume.check_space(slab_bytes(self.header) + DEVICE_MARGIN_BYTES)
            self._allocate(self.data_path, self.size_bytes)
            self._allocate(self.table_path, self.header.table_bytes)
            self.open()
            write_fully(self._io, self._table_fd, [fmt.encode_header(self.header)], 0)
            self._io.sync(self._table_fd)
            self._io.sync_directory(self._directory)
            self.volume.check_space()
        except OSError as error:
            self.discard()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.volume.growth_error = error.strerror or str(error)
                raise NoRoomError(error.errno, self.volume.growth_error) from error
            raise
        self.volume.growth_error = ""

    def _allocate(self, path: Path, size_bytes: int) -> None:
        fd = self._io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self._io.allocate(fd, size_bytes)
        finally:
            self._io.close(fd)

    def store(
        self, identity: bytes, fillings: Sequence[Filling], *, is_ordered: bool = False
    ) -> bool:
        """Writes payloads and records; True. Raises OSError: then any may be there or not.

        With `is_ordered` no record reaches the device before its payload: it may count for more
        than a whole one of the same block elsewhere.
        """
        fillings = sorted(fillings, key=lambda each: each.slot)
        slots = [each.slot for each in fillings]
        self.unsynced.update(slots)
        self.damaged.difference_update(slots)
        records = [
            fmt.Record(
                each.slot,
                each.sequence,
                xxhash.xxh3_128_digest(each.cell[: each.length].data),
                identity,
                each.length,
                each.key.lane,
                each.key.block_hash,
                each.key.parent_hash,
                each.key.position,
                each.stored_at,
            )
            for each in fillings
        ]
        for run in _runs(fillings, slots, self.slot_bytes):
            cells = [each.cell for each in run]
            write_fully(self._io, self._data_fd, cells, run[0].slot * self.slot_bytes)
        if is_ordered:
            self._io.sync(self._data_fd)
        encoded = fmt.encode_records(self.header.slab_id, records)
        self._write_records(slots, encoded)
        for record in records:
            self.digests[record.slot] = np.frombuffer(record.digest, np.uint8)
        self.unsynced.update(slots)  # a sync may have gone by meanwhile
        return True

    def fetch(
        self, slots: Sequence[int], cells: Sequence[ByteArray], lengths: Sequence[int]
    ) -> list[Fetched]:
        """Reads slots, in ascending order, into cells of whole slots, and verifies them."""
        reads = list(zip(slots, cells, strict=True))
        read: list[bool] = []
        for run in _runs(reads, slots, self.slot_bytes):
            if self._read(run):
                read += [True] * len(run)
            else:  # one bad sector costs one block
                read += [len(run) > 1 and self._read([each]) for each in run]
        return [
            self._judge(slot, cell[:length]) if is_read else Fetched.UNREADABLE
            for slot, cell, length, is_read in zip(slots, cells, lengths, read, strict=True)
        ]

    def _read(self, run: Sequence[tuple[int, ByteArray]]) -> bool:
        offset = run[0][0] * self.slot_bytes
        try:
            read_fully(self._io, self._data_fd, [cell for _, cell in run], offset)
        except OSError:
            return False
        return True

    def _judge(self, slot: int, payload: ByteArray) -> Fetched:
        whole = xxhash.xxh3_128_digest(payload.data) == self.digests[slot].tobytes()
        return Fetched.WHOLE if whole else Fetched.DAMAGED

    def erase(self, slots: Sequence[int]) -> bool:
        """Empties records, so that no start finds the blocks; synced on return. True.

        Raises OSError; then any of them may be empty or not.
        """
        slots = sorted(slots)
        self._write_records(slots, [fmt.EMPTY_RECORD] * len(slots))
        self._io.sync(self._table_fd)
        return True

    def _write_records(self, slots: Sequence[int], encoded: Sequence[bytes]) -> None:
        for run in _runs(list(zip(slots, encoded, strict=True)), slots, fmt.RECORD_BYTES):
            offset = fmt.HEADER_BYTES + run[0][0] * fmt.RECORD_BYTES
            write_fully(self._io, self._table_fd, [b"".join(data for _, data in run)], offset)

    def sync(self) -> None:
        """Returns when all that was written is on the device. Raises OSError."""
        with self._closing:
            if self._table_fd >= 0:
                self._io.sync(self._data_fd)
                self._io.sync(self._table_fd)

    def records(self, identity: bytes, first_slot: int) -> fmt.Records:
        """The records of PIECE_SLOTS slots. Raises OSError."""
        count = min(PIECE_SLOTS, self.slots - first_slot)
        data = np.empty(count * fmt.RECORD_BYTES, np.uint8)
        offset = fmt.HEADER_BYTES + first_slot * fmt.RECORD_BYTES
        read_fully(self._io, self._table_fd, [data], offset)
        return fmt.decode_records(data.data, self.header, identity, first_slot)

    def discard(self) -> None:
        """Removes the files, or sets them aside. Raises OSError."""
        self.close()
        if self.is_set_aside:
            for path in (self.table_path, self.data_path):
                if path.exists():
                    self._io.rename(path, self._directory / ASIDE / path.name)
        else:
            self._remove()
        self.volume.look_at_space()

    def _remove(self) -> None:
        for path in (self.table_path, self.data_path):
            if path.exists():
                self._io.unlink(path)

    def close(self) -> None:
        with self._closing:
            for fd in (self._data_fd, self._table_fd):
                if fd >= 0:
                    self._io.close(fd)
            self._data_fd = self._table_fd = -1


def slab_bytes(header: fmt.SlabHeader) -> int:
    """What a slab takes at most."""
    return header.slots * header.slot_bytes + header.table_bytes + SLAB_OVERHEAD_BYTES


def _runs(items: Sequence[T], slots: Sequence[int], item_bytes: int) -> Iterator[Sequence[T]]:
    """Cuts items in ascending slots into those that one call transfers."""
    longest = max(1, _MAX_RUN_BYTES // item_bytes)
    first = 0
    for index in range(1, len(items) + 1):
        is_end = index == len(items) or slots[index] != slots[index - 1] + 1
        if is_end or index - first == longest:
            yield items[first:index]
            first = index

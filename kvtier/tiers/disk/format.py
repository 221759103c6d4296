"""The bytes of a slab table: docs/disk-format.md. No I/O.

What is read here may have been torn, rotten, cut off or written elsewhere. A header is right or
raises; a record is live, empty, foreign or damaged, and never raises.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES, Lane
from kvtier.core.namespace import MAX_BLOCK_BYTES
from kvtier.core.slots import SLOT_ALIGNMENT_BYTES

VERSION = 1
MAGIC = b"kvtslab\0"
HEADER_BYTES = 4096
RECORD_BYTES = 256
SLAB_ID_BYTES = 16
DIGEST_BYTES = 16
IDENTITY_BYTES = 32
MAX_SLOTS = 1 << 30
#: A reader may count on from what it read, and use signed numbers.
MAX_SEQUENCE = (1 << 63) - 1
EMPTY_RECORD = bytes(RECORD_BYTES)

_U64 = struct.Struct("<Q")
_HEADER = struct.Struct(f"<8sIIQQ{SLAB_ID_BYTES}s{IDENTITY_BYTES}s")
_HEADER_CHECKSUM = HEADER_BYTES - _U64.size
# A record is described twice: structs write one, NumPy reads many. The golden file holds both.
_RECORD_BODY = struct.Struct("<Q16s32s16sIIIHHBB2xI24x64s64s")
_RECORD = np.dtype(
    [
        ("checksum", "<u8"),
        ("sequence", "<u8"),
        ("digest", "u1", DIGEST_BYTES),
        ("identity", "u1", IDENTITY_BYTES),
        ("slab_id", "u1", SLAB_ID_BYTES),
        ("slot", "<u4"),
        ("length", "<u4"),
        ("position", "<u4"),
        ("group", "<u2"),
        ("shard", "<u2"),
        ("hash_bytes", "u1"),
        ("parent_hash_bytes", "u1"),
        ("reserved", "u1", 2),
        ("stored_at", "<u4"),
        ("reserved_too", "u1", 24),
        ("hash", "u1", MAX_HASH_BYTES),
        ("parent_hash", "u1", MAX_HASH_BYTES),
    ]
)
#: By length: which bytes of a hash's field are padding.
_PADDING = np.arange(MAX_HASH_BYTES) >= np.arange(256)[:, None]

_Rows = npt.NDArray[np.void]
_Mask = npt.NDArray[np.bool_]


class FormatError(Exception):
    """The bytes are not a slab table of this version; the message says why."""


class UnknownVersionError(FormatError):
    """A slab table, of another version of the format."""

    def __init__(self, version: int) -> None:
        super().__init__(f"slab table of version {version}; this is version {VERSION}")
        self.version = version


@dataclass(frozen=True, slots=True)
class SlabHeader:
    """What a slab is for; raises ValueError for what no slab may be.

    `namespace` is a `namespace_digest`; the data file has `slots` times `slot_bytes`.
    """

    slab_id: bytes
    namespace: bytes
    slot_bytes: int
    slots: int

    def __post_init__(self) -> None:
        _check_size("slab_id", self.slab_id, SLAB_ID_BYTES)
        _check_size("namespace", self.namespace, IDENTITY_BYTES)
        _check_range("slot_bytes", self.slot_bytes, SLOT_ALIGNMENT_BYTES, MAX_BLOCK_BYTES)
        _check_range("slots", self.slots, 1, MAX_SLOTS)
        if self.slot_bytes % SLOT_ALIGNMENT_BYTES:
            raise ValueError(
                f"slot_bytes is {self.slot_bytes}, not a multiple of {SLOT_ALIGNMENT_BYTES}"
            )

    @property
    def table_bytes(self) -> int:
        """Size of the table's file: header and records, in whole 4096 bytes."""
        end = HEADER_BYTES + self.slots * RECORD_BYTES
        return -(-end // HEADER_BYTES) * HEADER_BYTES


def encode_header(header: SlabHeader) -> bytes:
    """The 4096 bytes of a header."""
    fields = _HEADER.pack(
        MAGIC,
        VERSION,
        RECORD_BYTES,
        header.slot_bytes,
        header.slots,
        header.slab_id,
        header.namespace,
    )
    return _with_checksum_after(fields.ljust(_HEADER_CHECKSUM, b"\0"))


def decode_header(data: bytes | memoryview) -> SlabHeader:
    """The header in the first 4096 bytes; raises FormatError, or UnknownVersionError."""
    if len(data) < HEADER_BYTES:
        raise FormatError(f"the header is cut off after {len(data)} bytes")
    magic, version, record_bytes, slot_bytes, slots, slab_id, namespace = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("not a slab table: the magic is wrong")
    if version != VERSION:
        # What follows, checksum included, is that version's own affair.
        raise UnknownVersionError(version)
    if bytes(data[:HEADER_BYTES]) != _with_checksum_after(bytes(data[:_HEADER_CHECKSUM])):
        raise FormatError("the header's checksum is wrong")
    if record_bytes != RECORD_BYTES:
        raise FormatError(f"record_bytes is {record_bytes}; it must be {RECORD_BYTES}")
    if any(data[_HEADER.size : _HEADER_CHECKSUM]):
        raise FormatError("unused bytes of the header are not zero")
    try:
        return SlabHeader(slab_id, namespace, slot_bytes, slots)
    except ValueError as error:
        raise FormatError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Record:
    """One block in one slot.

    `digest` is the XXH3-128 of the block's `length` bytes, `identity` an `identity_digest`;
    `parent_hash` is empty at the start of a sequence; `stored_at` is in Unix seconds, or 0.
    """

    slot: int
    sequence: int
    digest: bytes
    identity: bytes
    length: int
    lane: Lane
    block_hash: bytes
    parent_hash: bytes
    position: int
    stored_at: int = 0


def encode_records(slab_id: bytes, records: Sequence[Record]) -> list[bytes]:
    """256 bytes each; raises ValueError for what would be damage to a reader.

    Whether slot and length fit the slab is for the caller to know.
    """
    _check_size("slab_id", slab_id, SLAB_ID_BYTES)
    encoded = []
    for record in records:
        _check_record(record)
        body = _RECORD_BODY.pack(
            record.sequence,
            record.digest,
            record.identity,
            slab_id,
            record.slot,
            record.length,
            record.position,
            *record.lane,
            len(record.block_hash),
            len(record.parent_hash),
            record.stored_at,
            record.block_hash,
            record.parent_hash,
        )
        encoded.append(_U64.pack(xxhash.xxh3_64_intdigest(body)) + body)
    return encoded


@dataclass(slots=True)
class Records:
    """Columns of the live records of a table, in the order of the slots.

    `digests` is of shape [records, 16]. `foreign` counts whole records of another identity: of
    another generation of the namespace. `damaged` counts records whose checksum or fields are
    wrong. The slots of both are free.
    """

    slots: list[int]
    sequences: list[int]
    lanes: list[Lane]
    hashes: list[bytes]
    parents: list[bytes]
    positions: list[int]
    lengths: list[int]
    stored_at: list[int]
    digests: npt.NDArray[np.uint8]
    damaged: int
    foreign: int


def decode_records(
    data: bytes | memoryview, header: SlabHeader, identity: bytes, first_slot: int = 0
) -> Records:
    """The records of consecutive slots from `first_slot` on; raises for nothing in `data`.

    Data may end anywhere: a record cut off is damaged. What lies behind the last slot is ignored.
    Takes memory of up to twice the data, so a large table is better read in pieces.
    """
    _check_size("identity", identity, IDENTITY_BYTES)
    view = memoryview(data)[: max(0, header.slots - first_slot) * RECORD_BYTES]
    count, rest = divmod(len(view), RECORD_BYTES)
    rows = np.frombuffer(view[: count * RECORD_BYTES], np.uint8).view(_RECORD)
    used = rows.view("<u8").reshape(count, RECORD_BYTES // 8).any(axis=1)
    whole = used & _is_plausible(rows, header, first_slot)
    whole[whole] = _has_checksum(view, rows, np.flatnonzero(whole))
    live = whole & _equals(rows["identity"], identity)
    return _columns(
        rows if live.all() else rows[live],
        damaged=int((used & ~whole).sum()) + (rest > 0),
        foreign=int((whole & ~live).sum()),
    )


def _has_checksum(view: memoryview, rows: _Rows, numbers: npt.NDArray[np.intp]) -> _Mask:
    """Of each of the records of these numbers, whether its checksum is right."""
    digest, start, end = xxhash.xxh3_64_intdigest, _U64.size, RECORD_BYTES
    offsets = (numbers * RECORD_BYTES).tolist()
    sums = (digest(view[offset + start : offset + end]) for offset in offsets)
    mask: _Mask = rows["checksum"][numbers] == np.fromiter(sums, np.uint64, len(offsets))
    return mask


def _is_plausible(rows: _Rows, header: SlabHeader, first_slot: int) -> _Mask:
    """Of each, whether this slab's writer could have written it to this slot."""
    slots = np.arange(first_slot, first_slot + len(rows))
    hash_bytes, parent_bytes = rows["hash_bytes"], rows["parent_hash_bytes"]
    mask: _Mask = _equals(rows["slab_id"], header.slab_id) & (rows["slot"] == slots)
    mask &= (rows["sequence"] >= 1) & (rows["sequence"] <= MAX_SEQUENCE)
    mask &= (rows["length"] >= 1) & (rows["length"] <= header.slot_bytes)
    mask &= (hash_bytes >= MIN_HASH_BYTES) & (hash_bytes <= MAX_HASH_BYTES)
    mask &= (parent_bytes == 0) | (parent_bytes == hash_bytes)
    mask &= ~rows["reserved"].any(axis=1) & ~rows["reserved_too"].any(axis=1)
    mask &= ~(rows["hash"].astype(np.bool_) & _PADDING[hash_bytes]).any(axis=1)
    mask &= ~(rows["parent_hash"].astype(np.bool_) & _PADDING[parent_bytes]).any(axis=1)
    return mask


def _equals(column: npt.NDArray[np.uint8], value: bytes) -> _Mask:
    mask: _Mask = (column == np.frombuffer(value, np.uint8)).all(axis=1)
    return mask


def _columns(rows: _Rows, damaged: int, foreign: int) -> Records:
    numbers = (rows["group"].astype(np.uint32) << 16 | rows["shard"]).tolist()
    lanes = {number: Lane(number >> 16, number & 0xFFFF) for number in set(numbers)}
    return Records(
        slots=rows["slot"].tolist(),
        sequences=rows["sequence"].tolist(),
        lanes=[lanes[number] for number in numbers],
        hashes=_cut(rows["hash"], rows["hash_bytes"]),
        parents=_cut(rows["parent_hash"], rows["parent_hash_bytes"]),
        positions=rows["position"].tolist(),
        lengths=rows["length"].tolist(),
        stored_at=rows["stored_at"].tolist(),
        digests=rows["digest"].copy(),
        damaged=damaged,
        foreign=foreign,
    )


def _cut(fields: npt.NDArray[np.uint8], sizes: npt.NDArray[np.uint8]) -> list[bytes]:
    """The hashes without their padding."""
    joined = fields.tobytes()
    starts = range(0, len(joined), MAX_HASH_BYTES)
    return [joined[at : at + size] for at, size in zip(starts, sizes.tolist(), strict=True)]


def _check_record(record: Record) -> None:
    _check_range("slot", record.slot, 0, MAX_SLOTS - 1)
    _check_range("sequence", record.sequence, 1, MAX_SEQUENCE)
    _check_range("length", record.length, 1, MAX_BLOCK_BYTES)
    _check_range("position", record.position, 0, 0xFFFFFFFF)
    _check_range("stored_at", record.stored_at, 0, 0xFFFFFFFF)
    _check_range("group", record.lane.group, 0, 0xFFFF)
    _check_range("shard", record.lane.shard, 0, 0xFFFF)
    _check_size("digest", record.digest, DIGEST_BYTES)
    _check_size("identity", record.identity, IDENTITY_BYTES)
    _check_range("hash_bytes", len(record.block_hash), MIN_HASH_BYTES, MAX_HASH_BYTES)
    if record.parent_hash:
        _check_size("parent_hash", record.parent_hash, len(record.block_hash))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be {low} to {high}")


def _check_size(name: str, value: bytes, size_bytes: int) -> None:
    if len(value) != size_bytes:
        raise ValueError(f"{name} has {len(value)} bytes; it must have {size_bytes}")


def _with_checksum_after(data: bytes) -> bytes:
    return data + _U64.pack(xxhash.xxh3_64_intdigest(data))

"""The bytes of a block's values in the cluster: docs/cluster-format.md. No I/O.

What is read here may have been cut off, moved, or written by anybody. It is what its key promises,
or raises SealError.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hmac import compare_digest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES, BlockKey, Lane
from kvtier.core.namespace import MAX_BLOCK_BYTES
from kvtier.tiers.cluster.codec import Bytes, Codec, CodecError, decode, encode

VERSION = 1
MAGIC = b"kvtseal\0"
HEADER_BYTES = 320
IDENTITY_BYTES = 32
DIGEST_BYTES = 16
WRITE_ID_BYTES = 16
KEY_BYTES = 32
MAX_KEY_ID = 0xFFFFFFFF
MIN_PART_BYTES = 64 << 10
MAX_PART_BYTES = 2 << 20
HEADER_CONTEXT = "kvtier 2026 cluster-format 1 header MAC"
PAYLOAD_CONTEXT = "kvtier 2026 cluster-format 1 payload MAC"

_HAS_MAC = 1
_NO_MAC = bytes(32)
_FIELDS = struct.Struct("<8sIHHIIIIIIHHBB2x16s32s16s64s64s8x32s")
_MAC_END = _FIELDS.size + len(_NO_MAC)
_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,64}")

#: What holds bytes: contiguous.
Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


class Fault(StrEnum):
    """Why a value is a miss, for counting."""

    DAMAGED = "damaged"
    VERSION = "version"
    UNSEALED = "unsealed"
    UNKNOWN_KEY = "unknown key"
    FORGED = "forged"
    FOREIGN = "foreign"
    OVERSIZE = "oversize"


class SealError(Exception):
    """The value is a miss; the message says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Header(NamedTuple):
    """What stands before a block, field by field as in the page.

    `length` is that of the block, `stored_bytes` that of what is stored of it: the same with
    Codec.NONE, else less. `digest` is the XXH3-128 of the block, `parts` the number of values that
    hold it; the first follows the header in its value.
    """

    magic: bytes
    version: int
    flags: int
    codec: int
    key_id: int
    position: int
    length: int
    stored_bytes: int
    part_bytes: int
    parts: int
    group: int
    shard: int
    hash_bytes: int
    parent_hash_bytes: int
    write_id: bytes
    identity: bytes
    digest: bytes
    hash_field: bytes
    parent_hash_field: bytes
    payload_mac: bytes

    @property
    def key(self) -> BlockKey:
        """Lane and hash are what was asked for; parent and position are as the writer said."""
        return BlockKey(
            Lane(self.group, self.shard),
            self.hash_field[: self.hash_bytes],
            self.parent_hash_field[: self.parent_hash_bytes],
            self.position,
        )

    def span(self, part: int) -> slice:
        """Which of the stored bytes are this part, 0 to `parts` - 1."""
        start = part * self.part_bytes
        return slice(start, min(start + self.part_bytes, self.stored_bytes))

    def expect(self, part: int, value_bytes: int) -> slice:
        """The span, if a value of this size can be this part; raises SealError before it is read.

        The value of part 0 includes the header.
        """
        span = self.span(part)
        size = span.stop - span.start + (0 if part else HEADER_BYTES)
        if value_bytes != size:
            raise SealError(
                Fault.DAMAGED, f"the value of part {part} has {value_bytes} bytes, not {size}"
            )
        return span


@dataclass(frozen=True, slots=True)
class Sealed:
    """What to write: the value of part 0 is `head` and then `parts[0]`, of others `parts[i]`.

    With Codec.NONE the parts are views of the payload, which must not change until they are sent.
    """

    header: Header
    head: bytes
    parts: list[memoryview]


class Sealer:
    """Seals with the current key and opens with all; any thread may use it.

    Without keys there are checksums only, and values with a MAC do not open; with keys, values
    without a MAC do not. Keys are 32 random bytes, by key ids from 1 on; ValueError for others.
    """

    def __init__(
        self,
        keys: Mapping[int, bytes],
        current: int | None,
        *,
        part_bytes: int = MAX_PART_BYTES,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        for key_id, secret in keys.items():
            _check_range("key id", key_id, 1, MAX_KEY_ID)
            _check_range(f"the number of bytes of key {key_id}", len(secret), KEY_BYTES, KEY_BYTES)
        if (current not in keys) if keys else (current is not None):
            raise ValueError(f"the current key id is {current}; the key ids are {sorted(keys)}")
        _check_range("part_bytes", part_bytes, MIN_PART_BYTES, MAX_PART_BYTES)
        self._keys = {key_id: _Keys.derive(secret) for key_id, secret in keys.items()}
        self._current = current or 0
        self._part_bytes = part_bytes
        self._random_bytes = random_bytes

    def seal(
        self,
        identity: bytes,
        key: BlockKey,
        payload: Buffer,
        codec: Codec = Codec.NONE,
        digest: bytes | None = None,
    ) -> Sealed:
        """The values of a block; raises ValueError for what is no block.

        `identity` is an `identity_digest`; `digest` the XXH3-128 of the payload, if it is known.
        The payload does not change meanwhile.
        """
        block = np.frombuffer(payload, np.uint8)
        used, stored = encode(block, codec)
        keys = self._keys.get(self._current)
        header = Header(
            MAGIC,
            VERSION,
            _HAS_MAC if keys else 0,
            used,
            self._current,
            key.position,
            len(block),
            len(stored),
            self._part_bytes,
            -(-len(stored) // self._part_bytes),
            *key.lane,
            len(key.block_hash),
            len(key.parent_hash),
            self._random_bytes(WRITE_ID_BYTES),
            identity,
            xxhash.xxh3_128_digest(block.data) if digest is None else digest,
            key.block_hash.ljust(MAX_HASH_BYTES, b"\0"),
            key.parent_hash.ljust(MAX_HASH_BYTES, b"\0"),
            keys.payload_mac(stored) if keys else _NO_MAC,
        )
        fields = _encode(header)
        mac = keys.header_mac(fields) if keys else _NO_MAC
        parts = [stored.data[header.span(part)] for part in range(header.parts)]
        return Sealed(header, _with_checksum_after(fields + mac), parts)

    def open_head(
        self, data: Buffer, value_bytes: int, identity: bytes, key: BlockKey, max_bytes: int
    ) -> Header:
        """The header of this block, from the first 320 bytes of a value; raises SealError.

        `value_bytes` is the size of the whole value, `max_bytes` that of the reader's room. Lane
        and hash of `key` are compared, its parent and position are not.
        """
        raw = bytes(data[:HEADER_BYTES])
        _check_whole(raw)
        self._check_mac(raw)
        header = _decode(raw)
        if header.identity != identity:
            raise SealError(Fault.FOREIGN, "the value is of another namespace or generation")
        if header.key[:2] != key[:2]:
            raise SealError(Fault.FOREIGN, "the value is another block's")
        if header.length > max_bytes:
            raise SealError(
                Fault.OVERSIZE, f"the block has {header.length} bytes, the room for it {max_bytes}"
            )
        header.expect(0, value_bytes)
        return header

    def verify(self, header: Header, cell: Buffer, stored: Buffer | None = None) -> None:
        """Raises SealError unless the first `length` bytes of `cell` are now the block.

        With Codec.NONE the parts were received into `cell`, at their spans. Otherwise they were
        received into `stored`, in the same way; they are verified there, and decoded into `cell`.
        Nobody else may write to either meanwhile, or read `cell` before. A header comes from
        `open_head`. ValueError if a buffer is too small, or `stored` is there and not wanted.
        """
        if (header.codec == Codec.NONE) != (stored is None):
            raise ValueError(f"stored bytes in a buffer of their own, or none, for {header.codec=}")
        block = _first(cell, header.length)
        data = block if stored is None else _first(stored, header.stored_bytes)
        if self._keys or header.key_id:
            keys = self._keys_of(header.key_id)
            if not compare_digest(keys.payload_mac(data), header.payload_mac):
                raise SealError(Fault.FORGED, "the payload's MAC is wrong")
        if stored is not None:
            try:
                decode(data, Codec(header.codec), block)
            except CodecError as error:
                raise SealError(Fault.DAMAGED, str(error)) from None
        if xxhash.xxh3_128_digest(block.data) != header.digest:
            raise SealError(Fault.DAMAGED, "the block's digest is wrong")

    def _check_mac(self, raw: bytes) -> None:
        flags, _, key_id = _FIELDS.unpack_from(raw)[2:5]
        if flags & _HAS_MAC:
            mac = self._keys_of(key_id).header_mac(raw[: _FIELDS.size])
            if not compare_digest(mac, raw[_FIELDS.size : _MAC_END]):
                raise SealError(Fault.FORGED, "the header's MAC is wrong")
        elif self._keys:
            raise SealError(Fault.UNSEALED, "the value has no MAC")

    def _keys_of(self, key_id: int) -> _Keys:
        keys = self._keys.get(key_id)
        if not keys:
            raise SealError(Fault.UNKNOWN_KEY, f"there is no key {key_id}")
        return keys


def key_name(prefix: str, identity: bytes, lane: Lane, block_hash: bytes) -> bytes:
    """The Redis key of a block: of the value with its header and part 0.

    All keys of a block are in one slot of a Redis Cluster, those of different blocks in any.
    ValueError for a prefix that is not letters, digits, '.', '_', ':' and '-', at most 64.
    """
    place = f"{identity[:16].hex()}:{lane.group}.{lane.shard}:{block_hash.hex()}"
    return f"{_checked(prefix)}:{VERSION}:{{{place}}}".encode()


def part_name(name: bytes, header: Header, part: int) -> bytes:
    """The Redis key of a part from 1 on, of the block with this `key_name`."""
    return b"%b:%b:%d" % (name, header.write_id.hex().encode(), part)


def name_pattern(prefix: str, identity: bytes) -> bytes:
    """What SCAN matches: all keys of one generation of a namespace."""
    return f"{_checked(prefix)}:{VERSION}:{{{identity[:16].hex()}:*".encode()


class _Keys(NamedTuple):
    """Two of one secret, so that no payload, whatever is in it, has a header's MAC."""

    header: bytes
    payload: bytes

    @classmethod
    def derive(cls, secret: bytes) -> _Keys:
        contexts = HEADER_CONTEXT, PAYLOAD_CONTEXT
        return cls(*(blake3(secret, derive_key_context=each).digest() for each in contexts))

    def header_mac(self, fields: bytes) -> bytes:
        return blake3(fields, key=self.header).digest()

    def payload_mac(self, stored: Bytes) -> bytes:
        return blake3(stored.data, key=self.payload).digest()


def _encode(header: Header) -> bytes:
    """What the header's MAC binds; raises ValueError for what is no block."""
    _check_fields(header)
    for name, size in (("identity", IDENTITY_BYTES), ("digest", DIGEST_BYTES)):
        _check_range(f"the number of bytes of {name}", len(getattr(header, name)), size, size)
    try:
        return _FIELDS.pack(*header)
    except struct.error as error:
        raise ValueError(f"lane or position is out of range: {error}") from None


def _check_whole(raw: bytes) -> None:
    """That these are the bytes of a header of this version, as somebody wrote them."""
    if len(raw) < HEADER_BYTES:
        raise SealError(Fault.DAMAGED, f"the header is cut off after {len(raw)} bytes")
    magic, version = _FIELDS.unpack_from(raw)[:2]
    if magic != MAGIC:
        raise SealError(Fault.DAMAGED, "not a sealed value: the magic is wrong")
    if version != VERSION:
        # What follows, checksum included, is that version's own affair.
        raise SealError(Fault.VERSION, f"a value of version {version}; this is version {VERSION}")
    if raw != _with_checksum_after(raw[:_MAC_END]):
        raise SealError(Fault.DAMAGED, "the header's checksum is wrong")


def _decode(raw: bytes) -> Header:
    """From bytes whose checksum and MAC are right."""
    header = Header._make(_FIELDS.unpack_from(raw))
    try:
        _check_fields(header)
    except ValueError as error:
        raise SealError(Fault.DAMAGED, str(error)) from None
    # Packing writes zeros where they belong; without a MAC there are zeros in its place.
    mac = raw[_FIELDS.size : _MAC_END] if header.key_id else _NO_MAC
    if _FIELDS.pack(*header) + mac != raw[:_MAC_END]:
        raise SealError(Fault.DAMAGED, "unused bytes of the header are not zero")
    return header


def _check_fields(header: Header) -> None:
    """Raises ValueError for what no writer writes."""
    hash_bytes, parent_bytes = header.hash_bytes, header.parent_hash_bytes
    _check_range("hash_bytes", hash_bytes, MIN_HASH_BYTES, MAX_HASH_BYTES)
    if parent_bytes not in (0, hash_bytes):
        raise ValueError(f"parent_hash_bytes is {parent_bytes}; it must be 0 or {hash_bytes}")
    _check_range("length", header.length, 1, MAX_BLOCK_BYTES)
    low, high = header.length, header.length
    if Codec(header.codec) is not Codec.NONE:
        low, high = 1, header.length - 1
    _check_range("stored_bytes", header.stored_bytes, low, high)
    _check_range("part_bytes", header.part_bytes, MIN_PART_BYTES, MAX_PART_BYTES)
    parts = -(-header.stored_bytes // header.part_bytes)
    _check_range("parts", header.parts, parts, parts)
    flags = _HAS_MAC if header.key_id else 0
    _check_range("flags", header.flags, flags, flags)
    tails = header.hash_field[hash_bytes:] + header.parent_hash_field[parent_bytes:]
    if any(tails) or (not header.key_id and header.payload_mac != _NO_MAC):
        raise ValueError("unused fields are not zero")


def _first(buffer: Buffer, size_bytes: int) -> Bytes:
    data = np.frombuffer(buffer, np.uint8)
    if len(data) < size_bytes:
        raise ValueError(f"the buffer has {len(data)} bytes; {size_bytes} belong into it")
    return data[:size_bytes]


@lru_cache(maxsize=16)
def _checked(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} is not letters, digits, '.', '_', ':' and '-', at most 64")
    return prefix


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be {low} to {high}")


def _with_checksum_after(data: bytes) -> bytes:
    return data + xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")

"""Behaviour of `kvtier.tiers.disk.format`."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import xxhash
from hypothesis import given

from kvtier.core.block import Lane
from kvtier.core.namespace import NamespaceSpec, identity_digest, namespace_digest
from kvtier.tiers.disk.format import (
    EMPTY_RECORD,
    HEADER_BYTES,
    MAX_SEQUENCE,
    MAX_SLOTS,
    RECORD_BYTES,
    VERSION,
    FormatError,
    Record,
    Records,
    SlabHeader,
    UnknownVersionError,
    decode_header,
    decode_records,
    encode_header,
    encode_records,
)

GOLDEN = (Path(__file__).parent / "golden" / "version-1.table").read_bytes()
PAGE = (Path(__file__).parents[4] / "docs" / "disk-format.md").read_text()

SPEC = NamespaceSpec(tenant="acme", name="llama", block_bytes=(6000,), block_tokens=16, shards=2)
GENERATION = bytes(range(16, 32))
IDENTITY = identity_digest(SPEC, GENERATION)
SLAB = bytes(range(16))
HEADER = SlabHeader(SLAB, namespace_digest(SPEC), slot_bytes=8192, slots=5)
FIRST_HASH = bytes(0xA0 + index % 16 for index in range(32))
SECOND_HASH = bytes(0xB0 + index % 16 for index in range(32))


def record(slot: int, sequence: int, payload: bytes, **values: Any) -> Record:
    return Record(
        slot=slot,
        sequence=sequence,
        digest=xxhash.xxh3_128_digest(payload),
        identity=IDENTITY,
        length=len(payload),
        **values,
    )


FIRST = record(
    0,
    1,
    b"first" * 1200,
    lane=Lane(0, 1),
    block_hash=FIRST_HASH,
    parent_hash=b"",
    position=0,
)
SECOND = record(
    1,
    0x0102030405060708,
    b"second" * 1000,
    lane=Lane(0, 1),
    block_hash=SECOND_HASH,
    parent_hash=FIRST_HASH,
    position=1,
)
LARGEST = record(
    3,
    3,
    b"x",
    lane=Lane(0xFFFF, 0xFFFE),
    block_hash=bytes(range(64)),
    parent_hash=bytes(range(64, 128)),
    position=0xFFFFFFFF,
)
SMALLEST = record(
    4,
    MAX_SEQUENCE,
    b"y" * 8192,
    lane=Lane(1, 0),
    block_hash=bytes(range(16)),
    parent_hash=bytes(range(16, 32)),
    position=7,
)
RECORDS = [FIRST, SECOND, LARGEST, SMALLEST]


def table(header: SlabHeader, records: Sequence[Record]) -> bytes:
    """The whole file."""
    slots = [EMPTY_RECORD] * header.slots
    encoded = encode_records(header.slab_id, records)
    for each, data in zip(records, encoded, strict=True):
        slots[each.slot] = data
    return (encode_header(header) + b"".join(slots)).ljust(header.table_bytes, b"\0")


def rows(found: Records, identity: bytes = IDENTITY) -> list[Record]:
    """The columns as records."""
    columns = zip(
        found.slots,
        found.sequences,
        [bytes(digest) for digest in found.digests],
        found.lengths,
        found.lanes,
        found.hashes,
        found.parents,
        found.positions,
        strict=True,
    )
    return [
        Record(slot, sequence, digest, identity, length, lane, block_hash, parent, position)
        for slot, sequence, digest, length, lane, block_hash, parent, position in columns
    ]


def counts(found: Records) -> tuple[int, int, int]:
    """How many are live, damaged and foreign."""
    return len(found.slots), found.damaged, found.foreign


def sealed(body: bytes) -> bytes:
    """A record with these bytes from 8 on, and the right checksum."""
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def sealed_header(data: bytes) -> bytes:
    return data[:4088] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:4088]))


# The golden file.


def test_a_table_is_these_bytes() -> None:
    assert table(HEADER, RECORDS) == GOLDEN


def test_these_bytes_are_a_table() -> None:
    header = decode_header(GOLDEN)
    assert header == HEADER
    found = decode_records(GOLDEN[HEADER_BYTES:], header, IDENTITY)
    assert rows(found) == RECORDS
    assert counts(found) == (4, 0, 0)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"kvtslab\0"),
        (8, struct.pack("<I", VERSION)),
        (12, struct.pack("<I", RECORD_BYTES)),
        (16, struct.pack("<Q", 8192)),
        (24, struct.pack("<Q", 5)),
        (32, SLAB),
        (48, bytes.fromhex("dcf7347f4d76b9f9960fafdf993844920dbd9ba32baf92eac62fca36fa5c9ebc")),
        (80, bytes(4008)),
        (4088, struct.pack("<Q", xxhash.xxh3_64_intdigest(GOLDEN[:4088]))),
    ],
)
def test_every_field_of_a_header_has_its_place(offset: int, value: bytes) -> None:
    assert GOLDEN[offset : offset + len(value)] == value


RECORD_FIELDS: list[tuple[int, bytes]] = [
    (0, struct.pack("<Q", xxhash.xxh3_64_intdigest(GOLDEN[4096 + 264 : 4096 + 512]))),
    (8, struct.pack("<Q", 0x0102030405060708)),
    (16, xxhash.xxh3_128_digest(b"second" * 1000)),
    (32, bytes.fromhex("d28ff8f5e2c1868ce35a33785f30ab58909ad7a76dc18f3cdb214e13d8962d65")),
    (64, SLAB),
    (80, struct.pack("<I", 1)),
    (84, struct.pack("<I", 6000)),
    (88, struct.pack("<I", 1)),
    (92, struct.pack("<H", 0)),
    (94, struct.pack("<H", 1)),
    (96, struct.pack("<B", 32)),
    (97, struct.pack("<B", 32)),
    (98, bytes(2)),
    (100, bytes(4)),
    (104, bytes(24)),
    (128, SECOND_HASH + bytes(32)),
    (192, FIRST_HASH + bytes(32)),
]


@pytest.mark.parametrize(("offset", "value"), RECORD_FIELDS)
def test_every_field_of_a_record_has_its_place(offset: int, value: bytes) -> None:
    start = HEADER_BYTES + RECORD_BYTES + offset
    assert GOLDEN[start : start + len(value)] == value


def test_the_fields_are_the_whole_record() -> None:
    assert b"".join(value for _, value in RECORD_FIELDS) == GOLDEN[4096 + 256 : 4096 + 512]


def test_the_page_shows_a_record_of_the_golden_file() -> None:
    lines = re.findall(r"^ +(\d+)  ((?:[0-9a-f]{2} ){15}[0-9a-f]{2})$", PAGE, re.MULTILINE)
    assert [int(offset) for offset, _ in lines] == list(range(0, RECORD_BYTES, 16))
    shown = bytes.fromhex("".join(values for _, values in lines))
    assert shown == GOLDEN[HEADER_BYTES + RECORD_BYTES : HEADER_BYTES + 2 * RECORD_BYTES]


# Identities.


def test_digests_of_namespaces_never_change() -> None:
    assert namespace_digest(SPEC).hex()[:16] == "dcf7347f4d76b9f9"
    assert identity_digest(SPEC, GENERATION).hex()[:16] == "d28ff8f5e2c1868c"


def test_no_two_namespaces_have_one_digest() -> None:
    specs = [
        SPEC,
        replace(SPEC, tenant="acm", name="ellama"),
        replace(SPEC, tenant="acmel", name="lama"),
        replace(SPEC, tenant="llama", name="acme"),
        replace(SPEC, revision="2"),
    ]
    digests = [namespace_digest(spec) for spec in specs]
    digests += [identity_digest(spec, GENERATION) for spec in specs]
    digests += [identity_digest(SPEC, bytes(16)), identity_digest(SPEC, b"")]
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {32}


# Round trips.

hashes = st.integers(16, 64).flatmap(lambda size: st.binary(min_size=size, max_size=size))


@st.composite
def headers(draw: st.DrawFn) -> SlabHeader:
    return SlabHeader(
        slab_id=draw(st.binary(min_size=16, max_size=16)),
        namespace=draw(st.binary(min_size=32, max_size=32)),
        slot_bytes=4096 * draw(st.integers(1, 1 << 18)),
        slots=draw(st.integers(1, MAX_SLOTS)),
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[SlabHeader, list[Record]]:
    header = replace(draw(headers()), slots=draw(st.integers(1, 12)))
    records = []
    for slot in sorted(draw(st.sets(st.integers(0, header.slots - 1)))):
        block_hash = draw(hashes)
        size = len(block_hash)
        records.append(
            Record(
                slot=slot,
                sequence=draw(st.integers(1, MAX_SEQUENCE)),
                digest=draw(st.binary(min_size=16, max_size=16)),
                identity=IDENTITY,
                length=draw(st.integers(1, header.slot_bytes)),
                lane=Lane(draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFF))),
                block_hash=block_hash,
                parent_hash=draw(st.just(b"") | st.binary(min_size=size, max_size=size)),
                position=draw(st.integers(0, 0xFFFFFFFF)),
            )
        )
    return header, records


@given(headers())
def test_a_header_comes_back(header: SlabHeader) -> None:
    encoded = encode_header(header)
    assert len(encoded) == HEADER_BYTES
    assert decode_header(encoded) == header
    assert decode_header(memoryview(encoded + b"records")) == header


@given(tables(), st.integers(1, 12))
def test_records_come_back_in_the_order_of_the_slots(
    made: tuple[SlabHeader, list[Record]], piece: int
) -> None:
    header, records = made
    data = table(header, records)[HEADER_BYTES:]
    assert rows(decode_records(data, header, IDENTITY)) == records
    pieces: list[Record] = []
    for first in range(0, header.slots, piece):
        part = memoryview(data)[first * RECORD_BYTES : (first + piece) * RECORD_BYTES]
        found = decode_records(part, header, IDENTITY, first)
        assert found.damaged == found.foreign == 0
        pieces += rows(found)
    assert pieces == records


@pytest.mark.parametrize(
    ("slots", "size"), [(1, 8192), (16, 8192), (17, 12288), (1024, 4096 + 1024 * 256)]
)
def test_a_table_is_whole_pages(slots: int, size: int) -> None:
    assert replace(HEADER, slots=slots).table_bytes == size


def test_what_a_table_holds_is_small() -> None:
    found = decode_records(GOLDEN[HEADER_BYTES:], HEADER, IDENTITY)
    assert found.lanes[0] is found.lanes[1]
    assert found.digests.shape == (4, 16)
    assert found.digests.base is None, "a digest keeps the whole table in memory"


# What is refused when it is written.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slab_id", bytes(15)),
        ("namespace", bytes(31)),
        ("slot_bytes", 0),
        ("slot_bytes", 4095),
        ("slot_bytes", 6000),
        ("slot_bytes", (1 << 30) + 4096),
        ("slots", 0),
        ("slots", MAX_SLOTS + 1),
    ],
)
def test_no_slab_is_implausible(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        replace(HEADER, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slot", -1),
        ("slot", MAX_SLOTS),
        ("sequence", 0),
        ("sequence", MAX_SEQUENCE + 1),
        ("digest", bytes(15)),
        ("identity", bytes(33)),
        ("length", 0),
        ("length", (1 << 30) + 1),
        ("position", -1),
        ("position", 1 << 32),
        ("group", Lane(65536, 0)),
        ("shard", Lane(0, -1)),
        ("hash_bytes", bytes(15)),
        ("hash_bytes", bytes(65)),
        ("parent_hash", bytes(31)),
    ],
)
def test_what_would_be_damage_is_not_written(field: str, value: Any) -> None:
    names = {"group": "lane", "shard": "lane", "hash_bytes": "block_hash"}
    with pytest.raises(ValueError, match=f"^{field} "):
        encode_records(SLAB, [replace(SECOND, **{names.get(field, field): value})])


def test_a_slab_id_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="slab_id has 17"):
        encode_records(bytes(17), [])


def test_an_identity_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="identity has 1 "):
        decode_records(b"", HEADER, bytes(1))


# Damaged headers.


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data = bytearray(GOLDEN[:HEADER_BYTES])
    for bit in range(8 * HEADER_BYTES):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as raised:
            decode_header(bytes(data))
        assert isinstance(raised.value, UnknownVersionError) == (8 <= bit // 8 < 12), bit
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("size", [*range(0, HEADER_BYTES, 512), HEADER_BYTES - 1])
def test_a_header_cut_off_is_no_header(size: int) -> None:
    with pytest.raises(FormatError, match=f"cut off after {size} bytes"):
        decode_header(GOLDEN[:size])


def test_another_version_is_told_from_damage() -> None:
    # Whatever else is in it, a checksum of this version's kind included.
    for data in (changed(GOLDEN, 8, b"\x02"), b"kvtslab\0\x02".ljust(HEADER_BYTES, b"\0")):
        with pytest.raises(UnknownVersionError, match="version 2") as raised:
            decode_header(data)
        assert raised.value.version == 2


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"K", "magic"),
        (12, b"\1", "record_bytes is 257"),
        (16, struct.pack("<Q", 0), "slot_bytes is 0"),
        (16, struct.pack("<Q", 8193), "slot_bytes is 8193"),
        (16, struct.pack("<Q", 1 << 63), "slot_bytes is"),
        (24, struct.pack("<Q", 0), "slots is 0"),
        (24, struct.pack("<Q", MAX_SLOTS + 1), "slots is"),
        (80, b"\1", "unused bytes"),
        (4087, b"\1", "unused bytes"),
    ],
)
def test_a_right_checksum_does_not_make_a_header(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_header(sealed_header(changed(GOLDEN, offset, value)))


# Damaged records.


def only(data: bytes, slot: int = SECOND.slot, header: SlabHeader = HEADER) -> Records:
    return decode_records(data, header, IDENTITY, first_slot=slot)


ENCODED = encode_records(SLAB, [SECOND])[0]


@pytest.mark.parametrize("whole", [ENCODED, EMPTY_RECORD], ids=["live", "empty"])
def test_every_flipped_bit_of_a_record_is_found(whole: bytes) -> None:
    assert only(whole).damaged == 0
    data = bytearray(whole)
    for bit in range(8 * RECORD_BYTES):
        data[bit // 8] ^= 1 << bit % 8
        assert counts(only(bytes(data))) == (0, 1, 0), bit
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(8, bytes(8), id="sequence 0"),
        pytest.param(8, struct.pack("<Q", MAX_SEQUENCE + 1), id="sequence"),
        pytest.param(64, b"\xff", id="slab"),
        pytest.param(80, b"\0", id="slot"),
        pytest.param(84, bytes(4), id="length 0"),
        pytest.param(84, struct.pack("<I", 8193), id="length"),
        pytest.param(96, b"\x0f\x0f", id="hash too short"),
        pytest.param(96, b"\x41\x41", id="hash too long"),
        pytest.param(96, b"\xff\xff", id="hash much too long"),
        pytest.param(97, b"\x10", id="parent of another size"),
        pytest.param(97, b"\0", id="parent without a size"),
        pytest.param(98, b"\1", id="first reserved"),
        pytest.param(99, b"\1", id="last before the time"),
        pytest.param(104, b"\1", id="first after the time"),
        pytest.param(127, b"\1", id="last reserved"),
        pytest.param(160, b"\1", id="first behind the hash"),
        pytest.param(191, b"\1", id="last behind the hash"),
        pytest.param(224, b"\1", id="first behind the parent"),
        pytest.param(255, b"\1", id="last behind the parent"),
    ],
)
def test_a_right_checksum_does_not_make_a_record(offset: int, value: bytes) -> None:
    assert counts(only(sealed(ENCODED[8:]))) == (1, 0, 0)
    assert counts(only(sealed(changed(ENCODED, offset, value)[8:]))) == (0, 1, 0)


def test_an_empty_record_with_a_checksum_is_damaged() -> None:
    assert counts(only(sealed(bytes(248)))) == (0, 1, 0)
    assert counts(only(EMPTY_RECORD)) == (0, 0, 0)


def test_a_record_in_another_slot_or_slab_is_damaged() -> None:
    assert counts(only(ENCODED, slot=2)) == (0, 1, 0)
    assert counts(only(ENCODED, header=replace(HEADER, slab_id=bytes(16)))) == (0, 1, 0)
    assert counts(decode_records(ENCODED * 5, HEADER, IDENTITY)) == (1, 4, 0)


def test_a_record_too_long_for_the_slots_is_damaged() -> None:
    assert counts(only(ENCODED, header=replace(HEADER, slot_bytes=4096))) == (0, 1, 0)


def test_another_generation_is_foreign_and_not_damage() -> None:
    other = identity_digest(SPEC, bytes(16))
    data = table(HEADER, [FIRST, replace(SECOND, identity=other), LARGEST])[HEADER_BYTES:]
    found = decode_records(data, HEADER, IDENTITY)
    assert (rows(found), found.damaged, found.foreign) == ([FIRST, LARGEST], 0, 1)
    found = decode_records(data, HEADER, other)
    assert (found.slots, found.damaged, found.foreign) == ([1], 0, 2)


def test_damage_in_one_record_leaves_the_others() -> None:
    data = changed(GOLDEN, HEADER_BYTES + RECORD_BYTES + 20, b"\0\0")[HEADER_BYTES:]
    found = decode_records(data, HEADER, IDENTITY)
    assert (rows(found), found.damaged) == ([FIRST, LARGEST, SMALLEST], 1)


# Tables cut off.

FULL = replace(HEADER, slots=16)
FULL_RECORDS = [replace(SECOND, slot=slot, sequence=slot + 1) for slot in range(16)]
FULL_DATA = table(FULL, FULL_RECORDS)[HEADER_BYTES:]


@pytest.mark.parametrize("size", range(0, 16 * RECORD_BYTES, 512))
def test_a_table_cut_at_a_sector_keeps_what_is_before_it(size: int) -> None:
    found = decode_records(FULL_DATA[:size], FULL, IDENTITY)
    assert (rows(found), found.damaged) == (FULL_RECORDS[: size // RECORD_BYTES], 0)


@pytest.mark.parametrize("size", [1, 255, 257, 16 * RECORD_BYTES - 1])
def test_a_record_cut_off_is_damaged(size: int) -> None:
    found = decode_records(memoryview(FULL_DATA)[:size], FULL, IDENTITY)
    assert (rows(found), found.damaged) == (FULL_RECORDS[: size // RECORD_BYTES], 1)


@pytest.mark.parametrize("more", [b"x", b"x" * RECORD_BYTES, FULL_DATA])
@pytest.mark.parametrize("read", [lambda data: data, memoryview, bytearray])
def test_what_lies_behind_the_last_slot_is_ignored(
    more: bytes, read: Callable[[bytes], memoryview]
) -> None:
    found = decode_records(read(FULL_DATA + more), FULL, IDENTITY)
    assert counts(found) == (16, 0, 0)
    assert counts(decode_records(read(more), FULL, IDENTITY, first_slot=16)) == (0, 0, 0)
    assert counts(decode_records(read(more), FULL, IDENTITY, first_slot=99)) == (0, 0, 0)

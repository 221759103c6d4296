"""Bytes that carry a right checksum and are wrong all the same: rotten before they were written,
written by something else, or made up.
"""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest
import xxhash

from kvtier.core.block import Lane
from kvtier.tiers.disk.format import (
    EMPTY_RECORD,
    HEADER_BYTES,
    MAX_SEQUENCE,
    MAX_SLOTS,
    RECORD_BYTES,
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
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

FULL = 100_000
SLOTS = 50
SLAB, IDENTITY, OTHER = b"s" * 16, b"i" * 32, b"j" * 32
HEADER = SlabHeader(SLAB, b"n" * 32, slot_bytes=65536, slots=SLOTS)

# Offset and bytes of the numbers; what else there is, is hit by random ranges.
RECORD_NUMBERS = [(8, 8), (80, 4), (84, 4), (88, 4), (92, 2), (94, 2), (96, 1), (97, 1)]
HEADER_NUMBERS = [(8, 4), (12, 4), (16, 8), (24, 8)]
EDGES = [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 4095, 4096, 65535, 65536, 65537]
EDGES += [each + step for each in (1 << 30, 1 << 31, 1 << 32, 1 << 63, 1 << 64) for step in (-1, 0)]


def mutate(rng: random.Random, data: bytearray, numbers: list[tuple[int, int]]) -> None:
    """One change; the checksum is mended afterwards."""
    kind = rng.randrange(5)
    if kind == 0:
        offset, size = rng.choice(numbers)
        value = rng.choice(EDGES) % (1 << 8 * size)
        data[offset : offset + size] = value.to_bytes(size, "little")
    elif kind == 1:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        size = rng.choice([1, 2, 4, 8, 16, 32, 64])
        start = rng.randrange(len(data) - size + 1)
        source = rng.randrange(len(data) - size + 1)
        data[start : start + size] = {
            2: rng.randbytes(size),
            3: bytes(size),
            4: data[source : source + size],
        }[kind]


def random_record(rng: random.Random, slot: int) -> Record:
    size = rng.randint(16, 64)
    return Record(
        slot=slot,
        sequence=rng.randint(1, MAX_SEQUENCE),
        digest=rng.randbytes(16),
        identity=rng.choice([IDENTITY, OTHER]),
        length=rng.randint(1, HEADER.slot_bytes),
        lane=Lane(rng.randrange(65536), rng.randrange(65536)),
        block_hash=rng.randbytes(size),
        parent_hash=rng.choice([b"", rng.randbytes(size)]),
        position=rng.randrange(1 << 32),
    )


def fuzzed_record(rng: random.Random, slot: int) -> bytes:
    if rng.random() < 0.02:
        return EMPTY_RECORD
    if rng.random() < 0.05:
        body = rng.randbytes(RECORD_BYTES - 8)
    else:
        data = bytearray(encode_records(SLAB, [random_record(rng, slot)])[0])
        for _ in range(rng.randint(1, 3)):
            mutate(rng, data, RECORD_NUMBERS)
        body = bytes(data[8:])
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body


def fuzzed_header(rng: random.Random) -> bytes:
    slots, pages = rng.randint(1, MAX_SLOTS), rng.randint(1, 1 << 18)
    header = SlabHeader(rng.randbytes(16), rng.randbytes(32), pages * 4096, slots)
    data = bytearray(encode_header(header)[:-8])
    if rng.random() < 0.9:
        used = data[:96]  # most of a header is zeros, and a change there is damage
        for _ in range(rng.randint(1, 2)):
            mutate(rng, used, HEADER_NUMBERS)
        data[:96] = used
    else:
        mutate(rng, data, HEADER_NUMBERS)
    return bytes(data) + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data)))


def check_columns(found: Records, header: SlabHeader) -> None:
    assert found.slots == sorted(set(found.slots))
    assert all(0 <= slot < header.slots for slot in found.slots)
    assert all(1 <= sequence <= MAX_SEQUENCE for sequence in found.sequences)
    assert all(1 <= length <= header.slot_bytes for length in found.lengths)
    assert all(0 <= position < 1 << 32 for position in found.positions)
    assert all(0 <= lane.group < 65536 and 0 <= lane.shard < 65536 for lane in found.lanes)
    assert all(16 <= len(block_hash) <= 64 for block_hash in found.hashes)
    for block_hash, parent in zip(found.hashes, found.parents, strict=True):
        assert len(parent) in (0, len(block_hash))
    assert found.digests.shape == (len(found.slots), 16)


def check_bytes(found: Records, data: bytes) -> None:
    """What was found is all that there was: written again, it is the same bytes."""
    records = [
        Record(
            slot,
            found.sequences[row],
            found.digests[row].tobytes(),
            IDENTITY,
            found.lengths[row],
            found.lanes[row],
            found.hashes[row],
            found.parents[row],
            found.positions[row],
            found.stored_at[row],
        )
        for row, slot in enumerate(found.slots)
    ]
    for slot, encoded in zip(found.slots, encode_records(SLAB, records), strict=True):
        assert encoded == data[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES], slot


def test_fuzzed_records_are_live_and_whole_or_counted() -> None:
    rng, seen = random.Random(1), Counter[str]()
    for _ in range(times(FULL) // SLOTS):
        slots = [fuzzed_record(rng, slot) for slot in range(SLOTS)]
        data = b"".join(slots)
        found = decode_records(data, HEADER, IDENTITY)
        check_columns(found, HEADER)
        check_bytes(found, data)
        foreign = decode_records(data, HEADER, OTHER)
        assert found.damaged + found.foreign + len(found.slots) == sum(map(any, slots))
        assert foreign.damaged == found.damaged
        assert len(foreign.slots) <= found.foreign
        seen.update(live=len(found.slots), damaged=found.damaged, foreign=found.foreign)
    assert min(seen["live"], seen["damaged"], seen["foreign"]) > times(FULL) // 20, seen


def test_fuzzed_headers_are_plausible_or_refused() -> None:
    rng, seen = random.Random(2), Counter[str]()
    records = b"".join(fuzzed_record(rng, slot) for slot in range(4))
    for _ in range(times(FULL)):
        data = fuzzed_header(rng)
        try:
            header = decode_header(data)
        except UnknownVersionError as error:
            seen[f"version {error.version}"] += 1
            continue
        except FormatError:
            seen["refused"] += 1
            continue
        seen["whole"] += 1
        assert encode_header(header) == data
        assert header.slot_bytes % 4096 == 0
        assert 4096 <= header.slot_bytes <= 1 << 30
        assert 1 <= header.slots <= MAX_SLOTS
        assert header.table_bytes >= HEADER_BYTES + header.slots * RECORD_BYTES
        if seen["whole"] % 10 == 0:
            check_columns(decode_records(records, header, IDENTITY), header)
    assert min(seen["whole"], seen["refused"], seen["version 0"]) > 10, seen
    assert not seen["version 1"]

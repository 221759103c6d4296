"""Behaviour of `kvtier.tiers.cluster.sealing`."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from blake3 import blake3
from hypothesis import given

from kvtier.core.block import BlockKey, Lane
from kvtier.core.namespace import MAX_BLOCK_BYTES, NamespaceSpec, identity_digest
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.sealing import (
    HEADER_BYTES,
    HEADER_CONTEXT,
    MIN_PART_BYTES,
    PAYLOAD_CONTEXT,
    Fault,
    Header,
    Sealed,
    Sealer,
    SealError,
    key_name,
    name_pattern,
    part_name,
)
from tests.faults.repetitions import times

GOLDEN = Path(__file__).parent / "golden"
PAGE = (Path(__file__).parents[4] / "docs" / "cluster-format.md").read_text()

SPEC = NamespaceSpec(tenant="acme", name="llama", block_bytes=(6000,), block_tokens=16, shards=2)
IDENTITY = identity_digest(SPEC, bytes(range(16, 32)))
FIRST_HASH = bytes(0xA0 + index % 16 for index in range(32))
SECOND_HASH = bytes(0xB0 + index % 16 for index in range(32))
KEY = BlockKey(Lane(0, 1), SECOND_HASH, FIRST_HASH, 1)
OTHER = BlockKey(Lane(0, 1), FIRST_HASH, b"", 0)
SECRET, OLD_SECRET = bytes(range(32)), bytes(range(32, 64))
ROOM = 200_000


def counting(size_bytes: int) -> bytes:
    return bytes(range(size_bytes))


MARKED = Sealer({7: SECRET}, 7, part_bytes=MIN_PART_BYTES, random_bytes=counting)
PLAIN = Sealer({}, None, part_bytes=MIN_PART_BYTES, random_bytes=counting)
SMALL = bytes(index * 37 % 256 for index in range(1001))
CODABLE = b"".join(bytes((index * 37 % 256, 0x3C + index % 2)) for index in range(500)) + b"!"
LARGE = random.Random(3).randbytes(150_000)


class Store(dict[bytes, bytes]):
    """What a transport does, with a dict for a server."""

    def put(self, sealed: Sealed, key: BlockKey = KEY, identity: bytes = IDENTITY) -> Sealed:
        name = key_name("kvtier", identity, key.lane, key.block_hash)
        for part in range(1, sealed.header.parts):
            self[part_name(name, sealed.header, part)] = bytes(sealed.parts[part])
        self[name] = sealed.head + sealed.parts[0]
        return sealed

    def take(self, sealer: Sealer, key: BlockKey = KEY, identity: bytes = IDENTITY) -> bytes:
        """The block; raises SealError, or KeyError for a value that is not there."""
        name = key_name("kvtier", identity, key.lane, key.block_hash)
        header, cell = received(sealer, self[name], key, identity)
        coded = header.codec != Codec.NONE
        room = np.zeros(header.stored_bytes, np.uint8) if coded else cell
        room[header.span(0)] = np.frombuffer(self[name][HEADER_BYTES:], np.uint8)
        for part in range(1, header.parts):
            value = self[part_name(name, header, part)]
            room[header.expect(part, len(value))] = np.frombuffer(value, np.uint8)
        sealer.verify(header, cell, room if coded else None)
        return bytes(cell[: header.length])


def received(
    sealer: Sealer, value: bytes, key: BlockKey = KEY, identity: bytes = IDENTITY
) -> tuple[Header, Any]:
    header = sealer.open_head(value[:HEADER_BYTES], len(value), identity, key, ROOM)
    return header, np.zeros(ROOM, np.uint8)


def opened(sealer: Sealer, value: bytes, key: BlockKey = KEY, identity: bytes = IDENTITY) -> bytes:
    """The block of a value without further parts."""
    return Store({key_name("kvtier", identity, key.lane, key.block_hash): value}).take(
        sealer, key, identity
    )


def fault_of(
    sealer: Sealer, value: bytes, key: BlockKey = KEY, identity: bytes = IDENTITY
) -> Fault:
    with pytest.raises(SealError) as caught:
        opened(sealer, value, key, identity)
    return caught.value.fault


def value_of(sealer: Sealer, payload: bytes = SMALL, codec: Codec = Codec.NONE) -> bytes:
    sealed = sealer.seal(IDENTITY, KEY, payload, codec)
    return sealed.head + b"".join(sealed.parts)


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def mended(value: bytes) -> bytes:
    """With the checksum that somebody without the key can compute."""
    return changed(value, 312, xxhash.xxh3_64_intdigest(value[:312]).to_bytes(8, "little"))


def flipped(value: bytes, bit: int) -> bytes:
    return changed(value, bit // 8, bytes([value[bit // 8] ^ 1 << bit % 8]))


# The bytes.


@pytest.mark.parametrize(
    ("name", "sealer", "payload", "codec"),
    [
        ("version-1-plain.value", PLAIN, SMALL, Codec.NONE),
        ("version-1-mac.value", MARKED, SMALL, Codec.NONE),
        ("version-1-planes-lz4.value", MARKED, CODABLE, Codec.PLANES_LZ4),
    ],
)
def test_the_bytes_of_version_1_stay_as_they_are(
    name: str, sealer: Sealer, payload: bytes, codec: Codec
) -> None:
    golden = (GOLDEN / name).read_bytes()
    assert opened(sealer, golden) == payload
    assert received(sealer, golden)[0].codec == codec
    if codec is Codec.NONE:  # another version of lz4 may pack otherwise
        assert value_of(sealer, payload) == golden


def test_the_page_shows_the_golden_values_and_names() -> None:
    lines = re.findall(r"^ +(\d+)  ((?:[0-9a-f]{2} ?){16})$", PAGE, re.MULTILINE)
    header = (GOLDEN / "version-1-mac.value").read_bytes()[:HEADER_BYTES]
    assert [int(offset) for offset, _ in lines] == list(range(0, HEADER_BYTES, 16))
    assert bytes.fromhex("".join(row for _, row in lines)) == header
    name = key_name("kvtier", IDENTITY, KEY.lane, KEY.block_hash)
    sealed = MARKED.seal(IDENTITY, KEY, LARGE)
    assert f"    {name.decode()}\n" in PAGE
    assert f"    {part_name(name, sealed.header, 2).decode()}\n" in PAGE


def test_the_macs_are_those_of_the_page() -> None:
    value = value_of(MARKED)
    keys = [
        blake3(SECRET, derive_key_context=context).digest()
        for context in (HEADER_CONTEXT, PAYLOAD_CONTEXT)
    ]
    assert all(f"`{context}`" in PAGE for context in (HEADER_CONTEXT, PAYLOAD_CONTEXT))
    assert value[280:312] == blake3(value[:280], key=keys[0]).digest()
    assert value[248:280] == blake3(value[HEADER_BYTES:], key=keys[1]).digest()


# What was sealed opens.


@given(
    st.integers(1, 3 * MIN_PART_BYTES),
    st.sampled_from(Codec),
    st.sampled_from([PLAIN, MARKED]),
    st.integers(0, 0xFFFF),
    st.binary(min_size=16, max_size=64),
    st.integers(0, 0xFFFFFFFF),
)
def test_a_block_of_any_size_comes_back(
    size_bytes: int, codec: Codec, sealer: Sealer, number: int, block_hash: bytes, position: int
) -> None:
    payload = (CODABLE * (size_bytes // len(CODABLE) + 1))[:size_bytes]
    key = BlockKey(Lane(number, 0xFFFF - number), block_hash, block_hash[::-1], position)
    store = Store()
    sealed = store.put(sealer.seal(IDENTITY, key, payload, codec), key)
    assert len(store) == sealed.header.parts == -(-sealed.header.stored_bytes // MIN_PART_BYTES)
    assert store.take(sealer, key) == payload
    assert sealed.header.key == key


def test_the_payload_is_not_copied() -> None:
    payload = np.frombuffer(bytearray(LARGE), np.uint8)
    sealed = MARKED.seal(IDENTITY, KEY, payload)
    assert [len(part) for part in sealed.parts] == [65536, 65536, 18928]
    assert all(np.shares_memory(payload, np.frombuffer(part, np.uint8)) for part in sealed.parts)


@pytest.mark.parametrize(
    "change",
    [
        {"payload": b""},
        {"identity": b"short"},
        {"digest": b"short"},
        {"key": KEY._replace(block_hash=b"short")},
        {"key": KEY._replace(block_hash=bytes(65))},
        {"key": KEY._replace(parent_hash=bytes(16))},
        {"key": KEY._replace(position=1 << 32)},
        {"key": KEY._replace(lane=Lane(1 << 16, 0))},
        {"key": KEY._replace(lane=Lane(0, -1))},
    ],
)
def test_what_is_no_block_is_not_sealed(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bytes|length|range"):
        MARKED.seal(**{"identity": IDENTITY, "key": KEY, "payload": SMALL, **change})


@pytest.mark.parametrize(
    ("keys", "current"),
    [
        ({}, 1),
        ({1: SECRET}, None),
        ({1: SECRET}, 2),
        ({0: SECRET}, 0),
        ({1 << 32: SECRET}, 1 << 32),
        ({1: SECRET[1:]}, 1),
    ],
)
def test_wrong_keys_are_refused(keys: dict[int, bytes], current: int | None) -> None:
    with pytest.raises(ValueError, match="key"):
        Sealer(keys, current)


def test_a_wrong_digest_of_the_writer_is_found() -> None:
    sealed = MARKED.seal(IDENTITY, KEY, SMALL, digest=bytes(16))
    assert fault_of(MARKED, sealed.head + sealed.parts[0]) is Fault.DAMAGED


# What was changed does not.


@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
@pytest.mark.parametrize("codec", Codec)
def test_no_bit_can_be_changed(sealer: Sealer, codec: Codec) -> None:
    value = value_of(sealer, CODABLE, codec)
    assert opened(sealer, value) == CODABLE
    payload_bits = range(HEADER_BYTES * 8, len(value) * 8, 11)
    for bit in [*range(HEADER_BYTES * 8), *payload_bits]:
        fault_of(sealer, flipped(value, bit))


def test_no_bit_of_a_header_can_be_changed_by_one_who_has_not_the_key() -> None:
    value = value_of(MARKED)
    expected = {Fault.FORGED, Fault.UNKNOWN_KEY, Fault.UNSEALED, Fault.VERSION, Fault.DAMAGED}
    seen = Counter(fault_of(MARKED, mended(flipped(value, bit))) for bit in range(312 * 8))
    assert set(seen) == expected
    assert seen[Fault.DAMAGED] == 64  # the magic
    assert seen[Fault.VERSION] == seen[Fault.UNKNOWN_KEY] == 32
    assert seen[Fault.UNSEALED] == 1


@pytest.mark.parametrize("codec", Codec)
def test_a_changed_payload_is_forged_before_it_is_decoded(codec: Codec) -> None:
    value = value_of(MARKED, CODABLE, codec)
    bits = range(HEADER_BYTES * 8, len(value) * 8, 11)
    assert {fault_of(MARKED, flipped(value, bit)) for bit in bits} == {Fault.FORGED}


def test_other_bytes_with_the_same_digest_are_forged() -> None:
    """XXH3 is no cryptographic hash: somebody may find such bytes."""
    other = SMALL[::-1]
    header = MARKED.seal(IDENTITY, KEY, SMALL).header
    header = header._replace(digest=xxhash.xxh3_128_digest(other))
    with pytest.raises(SealError) as caught:
        MARKED.verify(header, other)
    assert caught.value.fault is Fault.FORGED


def test_a_payload_in_the_form_of_a_header_does_not_lend_its_mac() -> None:
    fields = changed(value_of(MARKED)[:280], 20, b"\x63")
    payload_mac = value_of(MARKED, fields)[248:280]
    forged = mended(fields + payload_mac + bytes(8) + SMALL)
    assert fault_of(MARKED, forged) is Fault.FORGED


@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
def test_another_length_is_refused_before_the_payload_is_read(sealer: Sealer) -> None:
    value = value_of(sealer)
    for other in [value + b"x", value + value, *(value[:end] for end in range(0, len(value), 7))]:
        with pytest.raises(SealError) as caught:
            received(sealer, other)
        assert caught.value.fault is Fault.DAMAGED


@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
def test_what_does_not_fit_is_refused_before_the_payload_is_read(sealer: Sealer) -> None:
    value = value_of(sealer)
    with pytest.raises(SealError) as caught:
        sealer.open_head(value, len(value), IDENTITY, KEY, len(SMALL) - 1)
    assert caught.value.fault is Fault.OVERSIZE


@pytest.mark.parametrize("size", [0, MAX_BLOCK_BYTES + 1, 0xFFFFFFFF])
@pytest.mark.parametrize("offset", [24, 28, 32, 36])
def test_impossible_sizes_are_refused_also_without_a_key(size: int, offset: int) -> None:
    value = mended(changed(value_of(PLAIN), offset, size.to_bytes(4, "little")))
    assert fault_of(PLAIN, value) is Fault.DAMAGED


@pytest.mark.parametrize("offset", [12, 14, 16, 44, 45, 46, 47, 144, 208, 240, 248, 280])
def test_headers_that_no_writer_writes_are_refused_also_without_a_key(offset: int) -> None:
    value = value_of(PLAIN)
    assert fault_of(PLAIN, mended(changed(value, offset, b"\xfe"))) is Fault.DAMAGED


# What was moved does not.


@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
def test_a_value_under_another_name_is_foreign(sealer: Sealer) -> None:
    value = value_of(sealer)
    generation = identity_digest(SPEC, bytes(16))
    tenant = identity_digest(NamespaceSpec(name="llama", block_bytes=(6000,)), bytes(range(16, 32)))
    for identity in (generation, tenant):
        assert fault_of(sealer, value, identity=identity) is Fault.FOREIGN
    assert fault_of(sealer, value, OTHER) is Fault.FOREIGN
    assert fault_of(sealer, value, KEY._replace(lane=Lane(1, 0))) is Fault.FOREIGN


@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
@pytest.mark.parametrize("codec", Codec)
def test_parts_of_others_are_not_accepted(sealer: Sealer, codec: Codec) -> None:
    mine = sealer.seal(IDENTITY, KEY, CODABLE * 150, codec)
    rotated = CODABLE[2:] + CODABLE[:2]
    others = [
        sealer.seal(IDENTITY, KEY, rotated * 150, codec),
        sealer.seal(IDENTITY, OTHER, rotated * 150, codec),
        sealer.seal(bytes(32), KEY, rotated * 150, codec),
    ]
    assert mine.header.parts >= 2
    name = key_name("kvtier", IDENTITY, KEY.lane, KEY.block_hash)
    for other in others:
        for part in range(mine.header.parts):
            store = Store()
            store.put(mine)
            if part:
                store[part_name(name, mine.header, part)] = bytes(other.parts[part])
            else:
                store[name] = mine.head + other.parts[0]
            with pytest.raises(SealError):
                store.take(sealer)


def test_parts_do_not_change_places() -> None:
    store, name = Store(), key_name("kvtier", IDENTITY, KEY.lane, KEY.block_hash)
    sealed = store.put(MARKED.seal(IDENTITY, KEY, LARGE + LARGE[: 4 << 10]))
    first, last = (part_name(name, sealed.header, part) for part in (1, 2))
    for swapped in (store[first], store[first][:-1], store[last] + b"x"):
        with pytest.raises(SealError):
            Store(store | {last: swapped}).take(MARKED)
    store[name], store[first] = store[name][:320] + store[first], store[name][320:]
    with pytest.raises(SealError):
        store.take(MARKED)


def test_parts_of_two_writers_lie_under_different_names() -> None:
    rng = random.Random(4)
    sealer = Sealer({}, None, part_bytes=MIN_PART_BYTES, random_bytes=rng.randbytes)
    store = Store()
    store.put(sealer.seal(IDENTITY, KEY, LARGE))
    store.put(sealer.seal(IDENTITY, KEY, LARGE[::-1]))
    assert len(store) == 1 + 2 + 2
    assert store.take(sealer) == LARGE[::-1]


# Keys.


def test_old_keys_open_and_the_current_one_seals() -> None:
    old = Sealer({6: OLD_SECRET}, 6)
    both = Sealer({6: OLD_SECRET, 7: SECRET}, 7)
    assert opened(both, value_of(old)) == SMALL
    assert opened(MARKED, value_of(both)) == SMALL
    assert fault_of(MARKED, value_of(old)) is Fault.UNKNOWN_KEY
    assert fault_of(old, value_of(both)) is Fault.UNKNOWN_KEY
    assert fault_of(Sealer({7: OLD_SECRET}, 7), value_of(both)) is Fault.FORGED


def test_with_keys_only_values_with_a_mac_open_and_without_only_those_without() -> None:
    assert fault_of(MARKED, value_of(PLAIN)) is Fault.UNSEALED
    assert fault_of(PLAIN, value_of(MARKED)) is Fault.UNKNOWN_KEY


def test_a_header_of_another_sealer_does_not_get_past_verification() -> None:
    sealed = PLAIN.seal(IDENTITY, KEY, SMALL)
    with pytest.raises(SealError):
        MARKED.verify(sealed.header, SMALL)
    with pytest.raises(SealError):
        PLAIN.verify(MARKED.seal(IDENTITY, KEY, SMALL).header, SMALL)


def test_buffers_that_do_not_suit_the_header_are_refused() -> None:
    header = MARKED.seal(IDENTITY, KEY, SMALL).header
    with pytest.raises(ValueError, match="1000 bytes"):
        MARKED.verify(header, SMALL[:-1])
    with pytest.raises(ValueError, match="codec"):
        MARKED.verify(header, SMALL, SMALL)
    with pytest.raises(ValueError, match="codec"):
        MARKED.verify(MARKED.seal(IDENTITY, KEY, CODABLE, Codec.PLANES_LZ4).header, SMALL)


# Names.


def test_names_show_neither_tenant_nor_model_and_one_slot_holds_a_block() -> None:
    name = key_name("kv:a", IDENTITY, Lane(2, 3), FIRST_HASH)
    further = part_name(name, MARKED.seal(IDENTITY, KEY, SMALL).header, 1)
    assert b"llama" not in name
    assert b"acme" not in name
    assert re.findall(rb"\{[^{}]*\}", name) == re.findall(rb"\{[^{}]*\}", further)
    assert name.startswith(name_pattern("kv:a", IDENTITY).rstrip(b"*"))
    assert not name.startswith(name_pattern("kv:a", bytes(32)).rstrip(b"*"))


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b", "a*", "a b", "x" * 65, "a\n"])
def test_prefixes_that_would_move_blocks_to_other_slots_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        key_name(prefix, IDENTITY, KEY.lane, KEY.block_hash)


# Anything.

NUMBERS = [(8, 4), (12, 2), (14, 2), (16, 4), (20, 4), (24, 4), (28, 4), (32, 4), (36, 4)]
NUMBERS += [(40, 2), (42, 2), (44, 1), (45, 1), (46, 2)]
EDGES = [0, 1, 15, 16, 17, 31, 32, 33, 64, 65, 255, 500, 501, 1000, 1001, 1002]
EDGES += [each + step for each in (1 << 16, 1 << 21, 1 << 30, 1 << 32) for step in (-1, 0, 1)]


def fuzzed(rng: random.Random, values: list[bytes]) -> bytes:
    """A value as somebody without the key could write it."""
    data = bytearray(rng.choice(values))
    if rng.random() < 0.05:
        return rng.randbytes(rng.choice([0, 8, 319, 320, 321, 1321]))
    for _ in range(rng.randint(0, 3)):
        kind = rng.randrange(4)
        if kind == 0:
            offset, size = rng.choice(NUMBERS)
            number = rng.choice(EDGES) % (1 << 8 * size)
            data[offset : offset + size] = number.to_bytes(size, "little")
        elif kind == 1:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            size = rng.choice([1, 4, 16, 32, 64])
            start, source = (rng.randrange(len(data) - size) for _ in range(2))
            data[start : start + size] = rng.choice(values)[source : source + size].ljust(size)
        elif rng.random() < 0.2:
            del data[rng.randrange(HEADER_BYTES, len(data)) :]
    return mended(bytes(data)) if rng.random() < 0.9 else bytes(data)


@pytest.mark.crash
@pytest.mark.parametrize("sealer", [PLAIN, MARKED])
def test_fuzzed_values_are_the_block_or_a_miss(sealer: Sealer) -> None:
    rng, seen = random.Random(5), Counter[str]()
    values = [
        value_of(each, CODABLE, codec)
        for each in (PLAIN, MARKED, sealer, sealer)
        for codec in Codec
    ]
    header = received(sealer, value_of(sealer, CODABLE))[0]
    for _ in range(times(50_000)):
        value = fuzzed(rng, values)
        try:
            block = opened(sealer, value)
        except SealError as error:
            seen[error.fault] += 1
            continue
        seen["accepted"] += 1
        if sealer is MARKED:
            assert value in values
        # Without a key a header can be made up, but no bytes under another one's digest.
        assert (block == CODABLE) == (received(sealer, value)[0].digest == header.digest)
    assert seen["accepted"] > 1000 / (10 if times(50_000) < 50_000 else 1), seen
    assert len(seen) >= 5, seen

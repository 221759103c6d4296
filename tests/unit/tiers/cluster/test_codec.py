"""Behaviour of `kvtier.tiers.cluster.codec`."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import lz4.block  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given

from kvtier.tiers.cluster.codec import Bytes, Codec, CodecError, decode, encode


def numbers_like_kv(count: int) -> Bytes:
    """bfloat16 numbers around zero, two bytes each."""
    values = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


def decoded(stored: Bytes, codec: Codec, size_bytes: int) -> bytes:
    out = np.full(size_bytes + 2, 0xEE, np.uint8)
    decode(stored, codec, out[1:-1])
    assert out[0] == out[-1] == 0xEE
    return out[1:-1].tobytes()


PAYLOADS = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.integers(1, 3000).map(lambda count: numbers_like_kv(count).tobytes()),
    st.integers(1, 3000).map(lambda count: numbers_like_kv(count)[:-1].tobytes() or b"z"),
    st.builds(
        lambda unit, count: unit * count, st.binary(min_size=1, max_size=9), st.integers(1, 400)
    ),
)


@given(PAYLOADS, st.sampled_from(Codec))
def test_what_was_encoded_decodes_to_the_same_bytes(payload: bytes, codec: Codec) -> None:
    used, stored = encode(array(payload), codec)
    assert used in (codec, Codec.NONE)
    assert len(stored) < len(payload) if used is not Codec.NONE else len(stored) == len(payload)
    assert decoded(stored, used, len(payload)) == payload


@pytest.mark.parametrize("size_bytes", [4096, 4097, (2 << 20) - 1])
def test_numbers_of_kv_become_smaller(size_bytes: int) -> None:
    payload = numbers_like_kv(size_bytes)[:size_bytes]
    used, stored = encode(payload, Codec.PLANES_LZ4)
    assert used is Codec.PLANES_LZ4
    assert len(stored) < 0.95 * size_bytes
    assert decoded(stored, used, size_bytes) == payload.tobytes()


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 5000])
def test_what_does_not_become_smaller_is_stored_as_it_is_and_not_copied(size_bytes: int) -> None:
    payload = array(random.Random(1).randbytes(size_bytes))
    used, stored = encode(payload, Codec.PLANES_LZ4)
    assert used is Codec.NONE
    assert np.shares_memory(stored, payload)


def test_planes_lie_low_before_high() -> None:
    payload = array(bytes(range(100)) + b"!")
    payload = np.repeat(payload, 1)
    payload[1:100:2] = 7
    _, stored = encode(payload, Codec.PLANES_LZ4)
    assert stored[:51].tobytes() == bytes(range(0, 100, 2)) + b"!"
    assert lz4.block.decompress(stored[51:], uncompressed_size=50) == b"\x07" * 50


def test_a_payload_at_an_odd_address_is_coded_too() -> None:
    room = np.empty(4001, np.uint8)
    payload = room[1:]
    payload[:] = numbers_like_kv(2000)
    used, stored = encode(payload, Codec.PLANES_LZ4)
    assert decoded(stored, used, 4000) == payload.tobytes()


@pytest.mark.parametrize("high_bytes", [0, 1, 499, 501, 1 << 28])
def test_a_plane_of_another_size_is_refused(high_bytes: int) -> None:
    packed = lz4.block.compress(bytes(high_bytes), store_size=False)
    if len(packed) >= 500:  # a plane that grows without bound, cut to what a header allows
        packed = packed[:400]
    with pytest.raises(CodecError):
        decode(array(bytes(500) + packed), Codec.PLANES_LZ4, np.empty(1000, np.uint8))


@pytest.mark.parametrize("size_bytes", [0, 1, 499, 500, 1000, 1001, 5000])
def test_stored_bytes_of_an_impossible_length_are_refused(size_bytes: int) -> None:
    with pytest.raises(CodecError):
        decode(array(bytes(size_bytes)), Codec.PLANES_LZ4, np.empty(1000, np.uint8))


def test_a_code_longer_than_the_block_is_refused_although_it_decodes() -> None:
    packed = lz4.block.compress(random.Random(3).randbytes(500), store_size=False)
    with pytest.raises(CodecError):
        decode(array(bytes(500) + packed), Codec.PLANES_LZ4, np.empty(1000, np.uint8))


@pytest.mark.parametrize("size_bytes", [0, 999, 1001])
def test_plain_bytes_of_another_length_are_refused(size_bytes: int) -> None:
    with pytest.raises(CodecError):
        decode(array(bytes(size_bytes)), Codec.NONE, np.empty(1000, np.uint8))


def test_damaged_bytes_are_refused_or_give_a_block_of_the_right_length() -> None:
    rng = random.Random(2)
    payload = numbers_like_kv(500)
    used, stored = encode(payload, Codec.PLANES_LZ4)
    refused = 0
    for _ in range(5000):
        bad = stored.copy()
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(500, len(bad))] = rng.randrange(256)
        try:
            decoded(bad[: rng.choice([len(bad), rng.randrange(len(bad))])], used, 1000)
        except CodecError:
            refused += 1
    assert refused > 500

"""Messages of streams: how they are cut, and that they are protobuf's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import xxhash

from kvtier.core.block_stream import (
    DATA_BYTES,
    MAX_MESSAGE_BYTES,
    Cut,
    Piece,
    arrivals,
    cuts,
    decode,
    encode,
    encode_keys,
    ended_by,
)
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

OK, ABSENT, SKIPPED = 1, 2, 0
SIZES = (1, 4096, 100_000, DATA_BYTES - 1, DATA_BYTES, DATA_BYTES + 1, 2 << 20, (8 << 20) + 1)


def payload(key: int, size: int) -> ByteArray:
    return np.full(size, key % 251, np.uint8)


def message(cut: Cut, size: int, *, with_statuses: bool = True) -> bytes:
    pieces = [payload(key, size)[start:stop] for key, start, stop in cut.pieces]
    digests = [
        xxhash.xxh3_128_digest(payload(key, size).data)
        for key, _, stop in cut.pieces
        if stop == size
    ]
    return encode(cut, pieces, digests, with_statuses=with_statuses)


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_and_every_key_is_sent_once_and_in_order(size: int) -> None:
    rng = random.Random(size)
    statuses = rng.choices([OK, OK, ABSENT, SKIPPED], k=40)
    position = (0, 0)
    sent: dict[int, tuple[int, int]] = {}
    for cut in cuts(statuses, size):
        data = message(cut, size)
        assert len(data) <= MAX_MESSAGE_BYTES
        assert (cut.index, cut.offset) >= position
        for key, start, found, status, digest in arrivals(decode(data), size):
            assert start == sent.get(key, (0, 0))[0]
            assert bytes(found) == payload(key, size)[start : start + len(found)].tobytes()
            sent[key] = (start + len(found), status)
            assert not digest or digest == xxhash.xxh3_128_digest(payload(key, size).data)
        position = cut.end
    expected = {
        key: (size if status == OK else 0, status)
        for key, status in enumerate(statuses)
        if status != SKIPPED
    }
    assert sent == expected


@pytest.mark.parametrize("size", SIZES)
def test_a_stream_goes_on_anywhere(size: int) -> None:
    statuses = [OK] * 5
    for first, offset in ((0, 0), (2, 0), (2, size // 2), (4, size - 1)):
        received = dict.fromkeys(range(first, 5), 0)
        for cut in cuts(statuses, size, first, offset):
            for key, start, found, _, _ in arrivals(decode(message(cut, size)), size):
                if not received[key]:
                    assert start == (offset if key == first else 0)
                received[key] += len(found)
        assert received == {key: size - (offset if key == first else 0) for key in range(first, 5)}


def test_small_blocks_share_messages() -> None:
    assert len(list(cuts([OK] * 1000, 512))) == 1
    assert len(list(cuts([ABSENT] * 8192, 2 << 20))) == 8


def test_messages_are_those_of_protobuf() -> None:
    cut = Cut(300, 70_000, [Piece(300, 70_000, 100_000)], [OK, ABSENT, ABSENT])
    data = message(cut, 100_000)
    theirs = pb.ReadBlocksResponse.FromString(data)
    assert theirs.SerializeToString() == data
    assert (theirs.index, theirs.offset, list(theirs.status)) == (300, 70_000, cut.statuses)
    assert theirs.data == bytes(payload(300, 30_000))
    written = message(cut, 100_000, with_statuses=False)
    assert pb.WriteBlocksRequest.FromString(written).digests == theirs.digests
    keys = block_pb2.BlockKeys(hash_bytes=32, hashes=b"h" * 64, group=3)
    request = pb.WriteBlocksRequest(keys=keys)
    assert encode_keys(keys.SerializeToString()) == request.SerializeToString()
    assert decode(request.SerializeToString()).keys == keys.SerializeToString()


def test_what_protobuf_writes_otherwise_is_read_too() -> None:
    unpacked = b"\x20\x01\x20\x02"  # `status`, one field each
    unknown = b"\x98\x06\x05\xa5\x06abcd\xa1\x06abcdefgh"
    chunk = decode(unknown + unpacked + b"\x1a\x02hi" + b"\x08\x07")
    assert (chunk.index, chunk.statuses, bytes(chunk.data)) == (7, [1, 2], b"hi")


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"\x1a\x05abc",
        b"\x1a\xff\xff\xff\xff\x7f",
        b"\x0b",
        b"\x25a",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="message"):
        decode(data)


def test_mutated_messages_are_refused_or_make_sense() -> None:
    """As protobuf judges them, where it takes them at all."""
    rng = random.Random(0)
    original = message(next(cuts([OK] * 8, 300)), 300)
    for _ in range(3000):
        mutated = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        del mutated[rng.randrange(len(mutated)) :]
        try:
            found = arrivals(decode(bytes(mutated)), 300)
        except InvalidRequestError:
            continue
        assert sum(len(each.data) for each in found) <= len(mutated)
        assert all(each.start + len(each.data) <= 300 for each in found)


def test_bytes_and_digests_that_do_not_match_are_refused() -> None:
    def found(**fields: object) -> None:
        chunk = decode(pb.WriteBlocksRequest(**fields).SerializeToString())  # type: ignore[arg-type]
        chunk.statuses = ended_by(chunk.digests)
        arrivals(chunk, 100)

    found(data=b"x" * 99)
    found(data=b"x" * 150, digests=bytes(16))
    for fields in (
        {"data": b"x" * 100},
        {"data": b"x" * 99, "digests": bytes(16)},
        {"data": b"x" * 250, "digests": bytes(16)},
        {"data": b"x" * 100, "digests": bytes(15)},
        {"offset": 100, "data": b"x"},
        {"offset": 1 << 63},
    ):
        with pytest.raises(InvalidRequestError):
            found(**fields)

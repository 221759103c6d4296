"""Messages of ReadBlocks and WriteBlocks: how payloads are cut, and their bytes.

The bytes are those of protobuf. Its classes would copy every payload twice more than what is done
here: once from slots or arrays to the message, and at the other end once from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kvtier.core.block import BlockStatus
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray

MAX_MESSAGE_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = 16
#: Of payloads in one message; the rest is for digests, statuses and numbers.
DATA_BYTES: Final = MAX_MESSAGE_BYTES - (32 << 10)
#: Finished in one message.
MAX_KEYS: Final = 1024
_PAGE_BYTES: Final = 4096
_NOT_SENT: Final = 0
_OK: Final = int(BlockStatus.OK)

_INDEX, _OFFSET, _DATA, _STATUS, _DIGESTS, _KEYS = range(1, 7)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


class Piece(NamedTuple):
    """Bytes of the payload of one key, from `start` to `stop`."""

    key: int
    start: int
    stop: int


@dataclass(slots=True)
class Cut:
    """One message to be sent: its pieces, and the statuses of the keys that it finishes."""

    index: int
    offset: int
    pieces: list[Piece] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def end(self) -> tuple[int, int]:
        """Where the next message begins: the key, and the offset in its payload."""
        index = self.index + len(self.statuses)
        is_partial = bool(self.pieces) and self.pieces[-1].key == index
        return index, self.pieces[-1].stop if is_partial else 0


def cuts(
    statuses: Sequence[int], block_bytes: int, first: int = 0, offset: int = 0
) -> Iterator[Cut]:
    """The messages for keys from `first` on, whose payload is sent from `offset` on.

    Keys that are OK have bytes, those with the status 0 are jumped over.
    """
    cut = Cut(first, offset)
    room = DATA_BYTES
    for index in range(first, len(statuses)):
        status = statuses[index]
        start = offset if index == first else 0
        if status == _NOT_SENT:
            if cut.statuses:
                yield cut
            cut, room = Cut(index + 1, 0), DATA_BYTES
            continue
        if status == _OK:
            if cut.statuses and block_bytes - start > room:
                yield cut
                cut, room = Cut(index, start), DATA_BYTES
            for stop in _stops(start, block_bytes):
                cut.pieces.append(Piece(index, start, stop))
                room -= stop - start
                if stop < block_bytes:
                    yield cut
                    cut, room = Cut(index, stop), DATA_BYTES
                start = stop
        cut.statuses.append(status)
        if len(cut.statuses) == MAX_KEYS:
            yield cut
            cut, room = Cut(index + 1, 0), DATA_BYTES
    if cut.statuses:
        yield cut


def _stops(start: int, block_bytes: int) -> list[int]:
    """Where the pieces of a payload end: as few as fit into messages, of nearly the same size."""
    left = block_bytes - start
    if left <= DATA_BYTES:
        return [block_bytes]
    count = -(-left // DATA_BYTES)
    step = min(DATA_BYTES, -(-left // count // _PAGE_BYTES) * _PAGE_BYTES)
    return [*range(start + step, block_bytes, step), block_bytes]


@dataclass(slots=True)
class Chunk:
    """One message as it arrived."""

    index: int = 0
    offset: int = 0
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    statuses: list[int] = field(default_factory=list)
    digests: bytes = b""
    #: A serialized BlockKeys.
    keys: bytes | None = None


class Arrival(NamedTuple):
    """What one message says of one key; the status is 0 while its payload goes on."""

    key: int
    start: int
    data: memoryview
    status: int
    digest: bytes


def arrivals(chunk: Chunk, block_bytes: int) -> list[Arrival]:
    """What a message has, key by key. Raises InvalidRequestError if it contradicts itself."""
    found: list[Arrival] = []
    index, start, data = chunk.index, chunk.offset, chunk.data
    if start >= block_bytes:
        raise InvalidRequestError(f"offset is {start}; a block has {block_bytes} bytes")
    used, digests = 0, 0
    for status in chunk.statuses:
        size = block_bytes - start if status == _OK else 0
        digest = chunk.digests[digests : digests + DIGEST_BYTES] if status == _OK else b""
        if len(data) - used < size or (status == _OK and len(digest) < DIGEST_BYTES):
            raise InvalidRequestError(
                f"data has {len(data)} bytes and digests {len(chunk.digests)}; too few for the "
                "blocks that end with the message"
            )
        found.append(Arrival(index, start, data[used : used + size], status, digest))
        index, start, used, digests = index + 1, 0, used + size, digests + len(digest)
    if len(data) - used >= block_bytes - start or digests < len(chunk.digests):
        raise InvalidRequestError(
            f"data has {len(data)} bytes and digests {len(chunk.digests)}; too many for the "
            "blocks that end with the message"
        )
    if used < len(data):
        found.append(Arrival(index, start, data[used:], _NOT_SENT, b""))
    return found


def ended_by(digests: bytes) -> list[int]:
    """Statuses of the blocks that end with a message of a writer: one for each digest."""
    if len(digests) % DIGEST_BYTES:
        raise InvalidRequestError(
            f"digests has {len(digests)} bytes; it must be a multiple of {DIGEST_BYTES}"
        )
    return [_OK] * (len(digests) // DIGEST_BYTES)


def encode(
    cut: Cut, payloads: Sequence[ByteArray], digests: Sequence[bytes], *, with_statuses: bool
) -> bytes:
    """A message. `payloads` are the bytes of the cut's pieces, which are copied once."""
    size_bytes = sum(len(each) for each in payloads)
    head = bytearray()
    if cut.index:
        head += _tag(_INDEX, _VARINT) + _varint(cut.index)
    if cut.offset:
        head += _tag(_OFFSET, _VARINT) + _varint(cut.offset)
    if size_bytes:
        head += _tag(_DATA, _BYTES) + _varint(size_bytes)
    tail = bytearray()
    if with_statuses and cut.statuses:
        tail += _tag(_STATUS, _BYTES) + _varint(len(cut.statuses)) + bytes(cut.statuses)
    if digests:
        tail += _tag(_DIGESTS, _BYTES) + _varint(DIGEST_BYTES * len(digests)) + b"".join(digests)
    return b"".join((head, *(each.data for each in payloads), tail))


def encode_keys(keys: bytes) -> bytes:
    """The first message of a WriteBlocks; `keys` is a serialized BlockKeys."""
    return _tag(_KEYS, _BYTES) + _varint(len(keys)) + keys


def decode(message: bytes) -> Chunk:
    """A message of either method; `data` is a view of it. Raises InvalidRequestError."""
    chunk = Chunk()
    view = memoryview(message)
    position = 0
    while position < len(view):
        tag, position = _read_varint(view, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(view, position)
            _note_number(chunk, number, value)
            continue
        if kind == _BYTES:
            size, position = _read_varint(view, position)
            _note_bytes(chunk, number, view[position : position + size])
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise InvalidRequestError(f"the message has a field of unknown kind {kind}")
        position += size
        if position > len(view):
            raise InvalidRequestError("the message is cut short")
    return chunk


def _note_number(chunk: Chunk, number: int, value: int) -> None:
    if number == _INDEX:
        chunk.index = value & 0xFFFFFFFF
    elif number == _OFFSET:
        chunk.offset = value
    elif number == _STATUS:
        chunk.statuses.append(value)


def _note_bytes(chunk: Chunk, number: int, value: memoryview) -> None:
    if number == _DATA:
        chunk.data = value
    elif number == _STATUS:
        position = 0
        while position < len(value):
            status, position = _read_varint(value, position)
            chunk.statuses.append(status)
    elif number == _DIGESTS:
        chunk.digests = bytes(value)
    elif number == _KEYS:
        chunk.keys = bytes(value)


def _tag(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """The number, and the position behind it; at most 64 bits."""
    value = shift = 0
    for byte in view[position : position + 10]:
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise InvalidRequestError("the message has a number that does not end")

"""Values that are not what their names promise, as somebody who can write to the server makes them.

Each maker gives all the values to be written for one block, by name; the head is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

import xxhash

from kvtier import NamespaceSpec
from kvtier.agent.sessions.namespaces import FIRST_GENERATION
from kvtier.core.block import BlockKey, Lane
from kvtier.core.namespace import identity_digest
from kvtier.memory import ByteArray
from kvtier.tiers.cluster.sealing import (
    HEADER_BYTES,
    Sealer,
    key_name,
    part_name,
)
from tests.cluster.agents import blocks_of

PREFIX = "kvtier"
PART_BYTES = 64 << 10
#: Where the checksum of a header stands, and all behind which it covers.
_CHECKED_BYTES = 312

Values = dict[bytes, bytes]


@dataclass(frozen=True)
class Author:
    """Who knows which keys, and writes about one block."""

    spec: NamespaceSpec
    block_hash: bytes
    keys: Mapping[int, bytes]
    random: Random

    @property
    def name(self) -> bytes:
        """Under which readers look for the block."""
        identity = identity_digest(self.spec, FIRST_GENERATION)
        return key_name(PREFIX, identity, Lane(), self.block_hash)

    @property
    def payload(self) -> ByteArray:
        [payload] = blocks_of(self.spec, [self.block_hash])
        return payload

    def sealed(
        self,
        *,
        spec: NamespaceSpec | None = None,
        generation_id: bytes = FIRST_GENERATION,
        keys: Mapping[int, bytes] | None = None,
        lane: Lane | None = None,
        block_hash: bytes | None = None,
        payload: ByteArray | None = None,
    ) -> Values:
        """Values as a node writes them, but for what is said, under the block's own name."""
        keys = self.keys if keys is None else keys
        sealer = Sealer(keys, max(keys, default=None), part_bytes=PART_BYTES)
        identity = identity_digest(spec or self.spec, generation_id)
        key = BlockKey(lane or Lane(), block_hash or self.block_hash, b"", 0)
        sealed = sealer.seal(identity, key, self.payload if payload is None else payload)
        first, *others = sealed.parts
        values = {self.name: bytes(sealed.head) + bytes(first)}
        for part, data in enumerate(others, start=1):
            values[part_name(self.name, sealed.header, part)] = bytes(data)
        return values

    def other_hash(self) -> bytes:
        return self.random.randbytes(len(self.block_hash))

    def other_keys(self) -> dict[int, bytes]:
        """Of the same ids."""
        return {each: self.random.randbytes(32) for each in self.keys}


Maker = Callable[[Author], Values]


def _any_name(author: Author, values: Values) -> bytes:
    return author.random.choice(list(values))


def a_flipped_bit(author: Author) -> Values:
    values = author.sealed()
    name = _any_name(author, values)
    raw = bytearray(values[name])
    raw[author.random.randrange(len(raw))] ^= 1 << author.random.randrange(8)
    return values | {name: bytes(raw)}


def a_flipped_bit_in_the_header(author: Author) -> Values:
    """With a checksum that is right again; a MAC cannot be."""
    values = author.sealed()
    raw = bytearray(values[author.name])
    raw[author.random.randrange(_CHECKED_BYTES)] ^= 1 << author.random.randrange(8)
    raw[_CHECKED_BYTES:HEADER_BYTES] = xxhash.xxh3_64_intdigest(raw[:_CHECKED_BYTES]).to_bytes(
        8, "little"
    )
    return values | {author.name: bytes(raw)}


def cut_off(author: Author) -> Values:
    values = author.sealed()
    name = _any_name(author, values)
    return values | {name: values[name][: author.random.randrange(len(values[name]))]}


def too_long(author: Author) -> Values:
    values = author.sealed()
    name = _any_name(author, values)
    return values | {name: values[name] + author.random.randbytes(author.random.randint(1, 400))}


def without_a_part(author: Author) -> Values:
    """Of a block of one part, without its end."""
    values = author.sealed()
    *others, last = values
    return {each: values[each] for each in others} or {last: values[last][:-1]}


def with_another_payload(author: Author) -> Values:
    """Its own header, and the bytes of another block."""
    values = author.sealed()
    [other] = blocks_of(author.spec, [author.other_hash()])
    stored, begin = bytes(other), 0
    for name, value in values.items():
        head = value[:HEADER_BYTES] if name == author.name else b""
        end = begin + len(value) - len(head)
        values[name] = head + stored[begin:end]
        begin = end
    return values


def the_bare_payload(author: Author) -> Values:
    return {author.name: bytes(author.payload)}


def noise(author: Author) -> Values:
    length = author.random.choice([1, 319, 320, 321, HEADER_BYTES + author.spec.block_bytes[0]])
    return {author.name: author.random.randbytes(length)}


def nothing(author: Author) -> Values:
    return {author.name: b""}


def of_another_block(author: Author) -> Values:
    other = author.other_hash()
    [payload] = blocks_of(author.spec, [other])
    return author.sealed(block_hash=other, payload=payload)


def of_another_lane(author: Author) -> Values:
    return author.sealed(lane=Lane(0, author.random.randint(1, 9)))


def of_another_namespace(author: Author) -> Values:
    other = author.random.choice([{"name": "other"}, {"tenant": "other"}])
    return author.sealed(spec=replace(author.spec, **other))  # type: ignore[arg-type]


def of_another_layout(author: Author) -> Values:
    return author.sealed(spec=replace(author.spec, dtype="float8"))


def of_another_generation(author: Author) -> Values:
    return author.sealed(generation_id=author.random.randbytes(16))


def of_another_length(author: Author) -> Values:
    size = author.spec.block_bytes[0]
    longer = author.random.choice([size - 1, size + 1, 2 * size])
    [payload] = blocks_of(replace(author.spec, block_bytes=(longer,)), [author.block_hash])
    return author.sealed(payload=payload)


def under_a_wrong_key(author: Author) -> Values:
    return author.sealed(keys=author.other_keys())


def under_an_unknown_key(author: Author) -> Values:
    return author.sealed(keys={max(author.keys) + 1: author.random.randbytes(32)})


def unsealed(author: Author) -> Values:
    return author.sealed(keys={})


def sealed_after_all(author: Author) -> Values:
    return author.sealed(keys={1: author.random.randbytes(32)})


ACCIDENTS: tuple[Maker, ...] = (
    a_flipped_bit,
    cut_off,
    too_long,
    without_a_part,
    with_another_payload,
    the_bare_payload,
    noise,
    nothing,
    of_another_block,
    of_another_lane,
    of_another_namespace,
    of_another_layout,
    of_another_generation,
    of_another_length,
)
#: What a node refuses that has keys.
FORGERIES: tuple[Maker, ...] = (
    *ACCIDENTS,
    a_flipped_bit_in_the_header,
    under_a_wrong_key,
    under_an_unknown_key,
    unsealed,
)
#: What a node refuses that has none.
MISTAKES: tuple[Maker, ...] = (*ACCIDENTS, sealed_after_all)

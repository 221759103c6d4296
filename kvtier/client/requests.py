"""Requests of a worker, and what their answers say: the same for every way to the agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from kvtier.core.block import Match, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import InvalidRequestError
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2


@dataclass(frozen=True)
class Lookup:
    """What is cached of a sequence.

    `matched` counts the leading blocks that are; `runs` says in which tier they are, as (tier,
    count); `present` has one entry per key if `match` was PRESENCE. `hold_id` goes to `load`.
    `ready_after_seconds` has the agent's estimate for each run: when all of it could be read from
    HOST, if it were asked for now; 0.0 where it can be read at once.
    """

    matched: int
    runs: tuple[tuple[Tier, int], ...] = ()
    present: tuple[bool, ...] = ()
    hold_id: int = 0
    ready_after_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a batch of keys stands: its KV group and shard, and what comes before the first one."""

    group: int = 0
    shard: int = 0
    parent: bytes = b""
    position: int = 0


START = Place()


def block_bytes_of(spec: NamespaceSpec, place: Place) -> int:
    """Raises InvalidRequestError for a group that the namespace has not."""
    if not 0 <= place.group < len(spec.block_bytes):
        raise InvalidRequestError(
            f"place.group is {place.group}; the namespace has {len(spec.block_bytes)}"
        )
    return spec.block_bytes[place.group]


def lookup_request(
    hashes: Sequence[bytes],
    place: Place,
    match: Match,
    shards: Sequence[int] = (),
    hold_seconds: float = 0.0,
    compute_seconds_per_block: float = 0.0,
    *,
    prefetch: bool = False,
    request_id: str = "",
) -> pb.LookupPrefixRequest:
    """For one entry of keys."""
    request = pb.LookupPrefixRequest(
        keys=[keys_message(hashes, place)],
        match=match.name,
        shards=shards,
        compute_seconds_per_block=compute_seconds_per_block,
        prefetch=prefetch,
        request_id=request_id,
    )
    if hold_seconds > 0:
        request.hold.CopyFrom(duration(hold_seconds))
    return request


def lookup_of(answer: Any, count: int) -> Lookup:
    """What a LookupPrefixResponse says of the `count` keys of its request."""
    found = answer.found[0]
    bits = np.frombuffer(found.presence, np.uint8)
    present = np.unpackbits(bits, bitorder="little")[:count].astype(bool).tolist()
    runs = tuple((Tier(run.tier), run.count) for run in found.runs)
    ready = tuple(seconds(run.ready_after) for run in found.runs)
    return Lookup(found.matched_count, runs, tuple(present), answer.hold_id, ready)


def keys_message(hashes: Sequence[bytes], place: Place) -> block_pb2.BlockKeys:
    size = len(hashes[0]) if hashes else 0
    packed = b"".join(hashes)
    if len(packed) != size * len(hashes):
        raise InvalidRequestError("hashes have different lengths; all of a call have the same")
    return block_pb2.BlockKeys(
        hash_bytes=size,
        hashes=packed,
        group=place.group,
        shard=place.shard,
        parent_hash=place.parent,
        position=place.position,
    )


def duration(length_seconds: float) -> Duration:
    whole = int(length_seconds)
    return Duration(seconds=whole, nanos=int((length_seconds - whole) * 1e9))


def seconds(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9


def shifted(place: Place, hashes: Sequence[bytes], start: int) -> Place:
    """The place of the part of a batch that begins at `start`."""
    if not start:
        return place
    return Place(place.group, place.shard, hashes[start - 1], place.position + start)

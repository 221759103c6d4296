"""From messages to values and back. What is wrong with a message is found here, and named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.agent.serving.whereabouts import Run
from kvtier.agent.sessions.grants import Granted
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES, BlockKeys, Lane, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import InvalidRequestError
from kvtier.v1 import block_pb2

#: A turn of the event loop is cut within entries, not between them.
MAX_ENTRIES = 256


def spec_from(message: block_pb2.NamespaceSpec) -> NamespaceSpec:
    return NamespaceSpec(
        tenant=message.tenant or "default",
        name=message.name,
        model=message.model,
        revision=message.revision,
        dtype=message.dtype,
        block_tokens=message.block_tokens,
        block_bytes=tuple(message.block_bytes),
        layers=message.layers,
        kv_heads=message.kv_heads,
        head_dim=message.head_dim,
        layout=message.layout,
        shards=message.shards or 1,
        hash_algorithm=message.hash_algorithm,
        engine=message.engine,
        extra=dict(message.extra),
    )


def spec_message(spec: NamespaceSpec) -> block_pb2.NamespaceSpec:
    return block_pb2.NamespaceSpec(
        tenant=spec.tenant,
        name=spec.name,
        **spec.layout_fields(),  # type: ignore[arg-type]
    )


def entries_from(
    messages: Sequence[block_pb2.BlockKeys], namespace: Namespace, max_keys: int
) -> list[BlockKeys]:
    """Keys of a call; together at most `max_keys`."""
    if not messages:
        raise InvalidRequestError("keys is empty")
    if len(messages) > MAX_ENTRIES:
        raise InvalidRequestError(f"keys has {len(messages)} entries; at most {MAX_ENTRIES}")
    entries = [
        keys_from(message, namespace, max_keys, f"keys[{index}]" if len(messages) > 1 else "keys")
        for index, message in enumerate(messages)
    ]
    total = sum(len(keys.hashes) for keys in entries)
    if total > max_keys:
        raise InvalidRequestError(
            f"keys has {total} hashes in all; at most {max_keys} (GetCapabilities.max_batch_blocks)"
        )
    return entries


def keys_from(
    message: block_pb2.BlockKeys, namespace: Namespace, max_keys: int, name: str = "keys"
) -> BlockKeys:
    size, data = message.hash_bytes, message.hashes
    if not MIN_HASH_BYTES <= size <= MAX_HASH_BYTES:
        raise InvalidRequestError(
            f"{name}.hash_bytes is {size}; it must be {MIN_HASH_BYTES} to {MAX_HASH_BYTES}"
        )
    if not data or len(data) % size:
        raise InvalidRequestError(
            f"{name}.hashes has {len(data)} bytes; it must be one or more hashes of {size} bytes"
        )
    if len(data) // size > max_keys:
        raise InvalidRequestError(
            f"{name}.hashes has {len(data) // size} hashes; at most {max_keys} "
            "(GetCapabilities.max_batch_blocks)"
        )
    _check_lane(message, namespace, name)
    _check_place(message, name)
    hashes = tuple(np.frombuffer(data, f"V{size}").tolist())
    lane = Lane(message.group, message.shard)
    return BlockKeys(lane, hashes, message.parent_hash, message.position)


def _check_lane(message: block_pb2.BlockKeys, namespace: Namespace, name: str) -> None:
    if message.group >= len(namespace.groups):
        raise InvalidRequestError(
            f"{name}.group is {message.group}; the namespace has {len(namespace.groups)} groups"
        )
    check_shard(message.shard, namespace, f"{name}.shard")


def check_shard(shard: int, namespace: Namespace, name: str) -> None:
    if shard >= namespace.spec.shards:
        raise InvalidRequestError(
            f"{name} is {shard}; the namespace has {namespace.spec.shards} shards"
        )


def _check_place(message: block_pb2.BlockKeys, name: str) -> None:
    parent, position = message.parent_hash, message.position
    if parent and not position:
        raise InvalidRequestError(
            f"{name}.parent_hash is set and {name}.position is 0: the start of a sequence has no "
            "parent"
        )
    if parent and len(parent) != message.hash_bytes:
        raise InvalidRequestError(
            f"{name}.parent_hash has {len(parent)} bytes; it must have {message.hash_bytes}, "
            "as the hashes"
        )
    if position + len(message.hashes) // message.hash_bytes >= 1 << 32:
        raise InvalidRequestError(f"{name}.position is {position}: the sequence is too long")


def check_parents(entries: Sequence[BlockKeys]) -> None:
    """What is stored hangs on what comes before it."""
    for keys in entries:
        if keys.position and not keys.parent:
            raise InvalidRequestError(
                f"keys.position is {keys.position} and keys.parent_hash is empty: give the hash "
                "of the block before the first one"
            )


def seconds_from(message: Duration, name: str) -> float:
    """A duration that is not negative."""
    seconds = message.seconds + message.nanos / 1e9
    if seconds < 0:
        raise InvalidRequestError(f"{name} is {seconds} s; it must not be negative")
    return seconds


def tiers_from(values: Sequence[int], name: str) -> frozenset[Tier]:
    try:
        return frozenset(Tier(value) for value in values)
    except ValueError as error:
        raise InvalidRequestError(f"{name} names an unknown tier: {error}") from error


def digests_from(data: bytes, digest_bytes: int) -> list[bytes]:
    if len(data) % digest_bytes:
        raise InvalidRequestError(
            f"digests has {len(data)} bytes; it must be a multiple of {digest_bytes}"
        )
    return [data[start : start + digest_bytes] for start in range(0, len(data), digest_bytes)]


def duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def timestamp(unix_seconds: float) -> Timestamp:
    whole = int(unix_seconds)
    return Timestamp(seconds=whole, nanos=int((unix_seconds - whole) * 1e9))


def slots_message(granted: Granted) -> block_pb2.Slots:
    return block_pb2.Slots(
        extent=granted.extents, slot=granted.slots, generation=granted.generations
    )


def run_message(run: Run) -> block_pb2.BlockRun:
    message = block_pb2.BlockRun(
        start=run.start,
        count=run.count,
        tier=run.tier,  # type: ignore[arg-type]
        pending=run.pending,
    )
    if run.ready_after_seconds:
        message.ready_after.CopyFrom(duration(run.ready_after_seconds))
    return message


def presence_bits(presence: Sequence[bool]) -> bytes:
    """One bit per key, least significant bit first."""
    return np.packbits(presence, bitorder="little").tobytes()

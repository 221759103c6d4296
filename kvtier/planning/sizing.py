"""How large HOST and DISK should be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from kvtier.config import format_size
from kvtier.planning.kv_shape import DTYPES, KvShape

#: Slots of a tier are multiples of it.
_PAGE_BYTES: Final = 4096
#: What slabs, tables and the file system take.
_DISK_ALLOWANCE: Final = 1.1
_HOST_ALLOWANCE: Final = 1.02
_COARSE_BYTES: Final = 1 << 30
_FINE_BYTES: Final = 1 << 26


@dataclass(frozen=True)
class Load:
    """What a node has to serve.

    `batch` requests run at a time; `sessions` live, and the share `reuse` of them comes back soon;
    the share `shared` of a context is the same for all (a system prompt, a document).
    """

    context_tokens: int
    batch: int
    sessions: int
    reuse: float
    shared: float
    block_tokens: int


@dataclass(frozen=True)
class Plan:
    """Bytes. `reasons` say in words where HOST's and DISK's sizes come from."""

    bytes_per_token: int
    block_bytes: int
    slot_bytes: int
    context_bytes: int
    batch_bytes: int
    stored_context_bytes: int
    host_bytes: int
    disk_bytes: int
    host_capacity: str
    disk_capacity: str
    reasons: tuple[str, str]


def plan(shape: KvShape, load: Load) -> Plan:
    """HOST keeps what runs and what comes back soon, DISK what all sessions have.

    Tiers keep each full block in all layers, also where windows have passed it.
    """
    block_bytes = block_size(shape, load.block_tokens)
    slot_bytes = sum(
        -(-_bytes(shape, place, load.block_tokens) // _PAGE_BYTES) * _PAGE_BYTES
        for place in range(len(shape.groups))
    )
    blocks = load.context_tokens // load.block_tokens
    shared = int(blocks * load.shared)
    own = blocks - shared
    returning = math.ceil(load.sessions * load.reuse)
    in_host = shared + own * min(load.batch + returning, max(load.sessions, load.batch))
    in_disk = shared + own * max(load.sessions, load.batch)
    host_bytes = _rounded(in_host * slot_bytes * _HOST_ALLOWANCE)
    disk_bytes = _rounded(in_disk * slot_bytes * _DISK_ALLOWANCE)
    context_bytes = shape.context_bytes(load.context_tokens)
    part = f"{shared:,} shared blocks + {own:,} blocks"
    return Plan(
        bytes_per_token=shape.bytes_per_token,
        block_bytes=block_bytes,
        slot_bytes=slot_bytes,
        context_bytes=context_bytes,
        batch_bytes=load.batch * context_bytes,
        stored_context_bytes=blocks * slot_bytes,
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
        host_capacity=format_size(host_bytes),
        disk_capacity=format_size(disk_bytes),
        reasons=(
            f"{part} for each of {load.batch:,} running and {returning:,} soon returning sessions",
            f"{part} for each of {max(load.sessions, load.batch):,} sessions, and 10 % for tables",
        ),
    )


def block_size(shape: KvShape, block_tokens: int) -> int:
    """Bytes of one block in all layers."""
    return sum(_bytes(shape, place, block_tokens) for place in range(len(shape.groups)))


def _bytes(shape: KvShape, place: int, block_tokens: int) -> int:
    group = shape.groups[place]
    return DTYPES[shape.dtype] * group.layers * group.numbers_per_token * block_tokens


def _rounded(size_bytes: float) -> int:
    step = _COARSE_BYTES if size_bytes > 8 * _COARSE_BYTES else _FINE_BYTES
    return math.ceil(size_bytes / step) * step

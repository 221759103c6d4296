"""The words of the request path: tiers, statuses, keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

MIN_HASH_BYTES = 16
MAX_HASH_BYTES = 64


class Tier(IntEnum):
    """A place where the bytes of a block may live, fastest first (numbers as in the proto)."""

    GPU = 1
    HOST = 2
    DISK = 3
    CLUSTER = 4


class BlockStatus(IntEnum):
    """What happened to one key of a batch (numbers as in the proto)."""

    OK = 1
    ABSENT = 2
    PRESENT = 3
    PENDING = 4
    REFUSED = 5
    EXPIRED = 6
    DIGEST_MISMATCH = 7


class Match(IntEnum):
    """What a lookup asks: the longest prefix, or which keys are present at all."""

    PREFIX = 1
    PRESENCE = 2


class Wait(IntEnum):
    """How long a load waits for blocks in slower tiers (numbers as in the proto)."""

    #: Not at all, but for hearing which there are; they are brought in the background.
    BEST_EFFORT = 1
    #: Until shortly before the call's deadline.
    ALL = 2
    #: As long as it takes less time than computing them.
    BREAK_EVEN = 3


class Lane(NamedTuple):
    """One KV-cache group of one shard: the chains of a lane never meet those of another."""

    group: int = 0
    shard: int = 0


class BlockKey(NamedTuple):
    """One block within a namespace; `parent_hash` is empty at the start of a sequence."""

    lane: Lane
    block_hash: bytes
    parent_hash: bytes = b""
    position: int = 0


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """Keys of consecutive blocks of one sequence, within a namespace.

    `parent` is the hash before the first one, empty at the start of a sequence; `position` is the
    index of the first block in its sequence.
    """

    lane: Lane
    hashes: tuple[bytes, ...]
    parent: bytes = b""
    position: int = 0

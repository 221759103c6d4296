"""Blocks whose bytes derive from their keys, and their judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtier import BlockStatus, Namespace, NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.testing import is_payload_for, payload_for

KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = 64 * KIB


def spec_of(name: str = "model", block_bytes: int = BLOCK_BYTES, **fields: str) -> NamespaceSpec:
    return NamespaceSpec(name=name, block_bytes=(block_bytes,), **fields)  # type: ignore[arg-type]


def hashes_of(sequence: str, count: int, first: int = 0) -> list[bytes]:
    """Keys of consecutive blocks of a sequence."""
    return [
        hashlib.sha256(f"{sequence}/{index}".encode()).digest()
        for index in range(first, first + count)
    ]


def payloads(spec: NamespaceSpec, hashes: Sequence[bytes]) -> list[ByteArray]:
    return [payload_for(each, spec.block_bytes[0], namespace=spec.label) for each in hashes]


def is_right(spec: NamespaceSpec, block_hash: bytes, data: ByteArray) -> bool:
    return is_payload_for(data, block_hash, spec.block_bytes[0], namespace=spec.label)


@dataclass(frozen=True)
class Verdict:
    """Blocks of a load: right, wrong, and not accepted because the lease had ended."""

    right: int = 0
    wrong: int = 0
    expired: int = 0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.right + other.right, self.wrong + other.wrong, self.expired + other.expired
        )


def judge(namespace: Namespace, hashes: Sequence[bytes]) -> Verdict:
    """Loads blocks and compares every byte of those that were accepted."""
    size = namespace.spec.block_bytes[0]
    out = np.zeros((len(hashes), size), np.uint8)
    statuses = namespace.load_into(hashes, out)
    return verdict_of(namespace.spec, hashes, statuses, out)


def verdict_of(
    spec: NamespaceSpec,
    hashes: Sequence[bytes],
    statuses: Sequence[int],
    copies: Sequence[ByteArray] | ByteArray,
) -> Verdict:
    """Judges copies of blocks."""
    accepted = [index for index, status in enumerate(statuses) if status == BlockStatus.OK]
    right = sum(is_right(spec, hashes[index], copies[index]) for index in accepted)
    return Verdict(right, len(accepted) - right, list(statuses).count(BlockStatus.EXPIRED))


def store(namespace: Namespace, sequence: str, count: int) -> int:
    """Stores a sequence; how many of its blocks are in the cache now."""
    hashes = hashes_of(sequence, count)
    statuses = namespace.store(hashes, payloads(namespace.spec, hashes))
    return sum(each in (BlockStatus.OK, BlockStatus.PRESENT) for each in statuses)

"""Payloads derived from their key, so that any reader can judge any block."""

from __future__ import annotations

import hashlib

import numpy as np

from kvtier.memory import ByteArray

_SEED_WORDS = 4


def payload_for(block_hash: bytes, block_bytes: int, *, namespace: str = "") -> ByteArray:
    """The bytes that belong to this hash in this namespace, and to no other."""
    digest = hashlib.sha256(namespace.encode() + b"\0" + block_hash).digest()
    start = np.frombuffer(digest, "<u8", _SEED_WORDS)
    counters = np.arange(-(-block_bytes // 8), dtype="<u8")
    with np.errstate(over="ignore"):
        # Every word depends on the key and on its place, so that no part fits anywhere else.
        words = (counters + start[0]) * (start[1] | np.uint64(1)) ^ start[2]
    payload: ByteArray = words.view(np.uint8)[:block_bytes]
    return payload


def is_payload_for(
    data: ByteArray, block_hash: bytes, block_bytes: int, *, namespace: str = ""
) -> bool:
    """Whether these are, to the last byte, the bytes that belong to this hash."""
    return bool(np.array_equal(data, payload_for(block_hash, block_bytes, namespace=namespace)))

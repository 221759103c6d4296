"""Prefix hashes for engines that have none.

A block hash is SHA-256 over the parent's hash (32 zero bytes for the first block), the block's
tokens as little-endian uint32, and `extra` if there is any. Test vectors stand in
`docs/hashing.md`. The scheme is named `ALGORITHM` in a NamespaceSpec's `hash_algorithm`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvtier.errors import InvalidRequestError

ALGORITHM = "sha256-chain-u32"
HASH_BYTES = 32
ROOT = bytes(HASH_BYTES)


def block_hashes(
    tokens: Sequence[int] | npt.NDArray[np.integer],
    block_tokens: int,
    *,
    parent: bytes = ROOT,
    extra: bytes = b"",
) -> list[bytes]:
    """The hashes of the full blocks of `tokens`; a trailing partial block has none.

    `extra` is mixed into every block: a LoRA adapter's name, an image's digest, a cache salt.
    Raises InvalidRequestError for a token outside 0 to 2**32 - 1.
    """
    if block_tokens < 1:
        raise InvalidRequestError(f"block_tokens is {block_tokens}; it must be at least 1")
    packed = _little_endian(tokens)
    step = 4 * block_tokens
    hashes = []
    for start in range(0, len(packed) - step + 1, step):
        parent = hashlib.sha256(parent + packed[start : start + step] + extra).digest()
        hashes.append(parent)
    return hashes


def _little_endian(tokens: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    array = np.asarray(tokens)
    if array.size == 0:
        return b""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidRequestError(
            f"tokens must be one row of integers, not {array.ndim} dimensions of {array.dtype}"
        )
    if array.min() < 0 or array.max() > 0xFFFFFFFF:
        raise InvalidRequestError("tokens must lie between 0 and 2**32 - 1")
    return array.astype("<u4").tobytes()

"""vLLM's block hashes, without vLLM.

A block's hash is that of (hash before it, its tokens, extra keys), serialized as canonical CBOR
(RFC 8949, 4.2.1); what vLLM pickles depends on its Python, and is not known here. The first
block's parent is the hash of a seed. See vLLM's `v1/core/kv_cache_utils.py` and `utils/hashing.py`
(version 0.32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import xxhash

from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvtier.v1.block_pb2 import NamespaceSpec

#: What vLLM takes instead of PYTHONHASHSEED.
_DEFAULT_SEED: Final = "vllm-none-hash"
_UINT, _BYTES, _TEXT, _ARRAY, _NULL = 0x00, 0x40, 0x60, 0x80, b"\xf6"

Hash = Callable[[object], bytes]


def vllm_hashes(
    spec: NamespaceSpec, tokens: Sequence[int], block_tokens: int, hash_seed: str | None
) -> list[bytes]:
    """The hashes that the connector uses for blocks of so many tokens, without salt or adapter.

    Raises InvalidRequestError if the engine's seed is another.
    """
    hash_of = _hash(spec.hash_algorithm)
    parent = hash_of(_DEFAULT_SEED if hash_seed is None else hash_seed)
    expected = spec.extra.get("hash_seed", "")
    if expected and hashlib.sha256(parent).hexdigest()[:16] != expected:
        raise InvalidRequestError(
            "--hash-seed: the engine's is another; give the PYTHONHASHSEED that it was started with"
        )
    hash_tokens = int(spec.extra.get("hash_tokens", block_tokens))
    if block_tokens % hash_tokens:
        raise InvalidRequestError(
            f"--block-tokens {block_tokens}: the engine hashes {hash_tokens} tokens at a time"
        )
    hashes = []
    for start in range(0, len(tokens) - hash_tokens + 1, hash_tokens):
        parent = hash_of((parent, tuple(tokens[start : start + hash_tokens]), None))
        hashes.append(parent)
    step = block_tokens // hash_tokens
    return hashes[step - 1 :: step]


def _hash(algorithm: str) -> Hash:
    match algorithm.removeprefix("vllm-"):
        case "sha256_cbor":
            return lambda value: hashlib.sha256(cbor(value)).digest()
        case "xxhash_cbor":
            return lambda value: xxhash.xxh3_128_digest(cbor(value))
    raise InvalidRequestError(f"--tokens: {algorithm} is not known here; give the hashes")


def cbor(value: object) -> bytes:
    """Canonical CBOR of what vLLM hashes: numbers from 0 on, bytes, text, tuples of them, None."""
    match value:
        case None:
            return _NULL
        case int():
            return _head(_UINT, value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case tuple():
            return _head(_ARRAY, len(value)) + b"".join(map(cbor, value))
    raise TypeError(f"{type(value).__name__} has no place in a block hash")


def _head(major: int, number: int) -> bytes:
    """The shortest form."""
    if number < 24:
        return bytes([major | number])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * size:
            return bytes([major | code]) + number.to_bytes(size)
    raise InvalidRequestError(f"--tokens: {number} is too large for a token id")

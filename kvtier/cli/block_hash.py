"""Block hashes as people write them."""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.cli.text import plural
from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES
from kvtier.errors import InvalidRequestError


def parsed(hashes: Sequence[str]) -> list[bytes]:
    """Hashes of one length from hexadecimal, with or without 0x."""
    keys = [_hash(text) for text in hashes]
    if len({len(key) for key in keys}) > 1:
        raise InvalidRequestError("HASH: all hashes must have one length")
    return keys


def _hash(text: str) -> bytes:
    digits = text.strip().lower().removeprefix("0x")
    if len(digits) % 2:
        raise InvalidRequestError(
            f"HASH {text}: {plural(len(digits), 'digit')}; a byte has two, one may be missing"
        )
    try:
        key = bytes.fromhex(digits)
    except ValueError as error:
        raise InvalidRequestError(f"HASH {text}: write it in hexadecimal") from error
    if not MIN_HASH_BYTES <= len(key) <= MAX_HASH_BYTES:
        raise InvalidRequestError(
            f"HASH {text}: {plural(len(key), 'byte')}; "
            f"a hash has {MIN_HASH_BYTES} to {MAX_HASH_BYTES}"
        )
    return key

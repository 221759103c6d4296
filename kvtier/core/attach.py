"""Messages of the attach socket, as ARCHITECTURE.md describes them.

Each is one SOCK_SEQPACKET packet of compact JSON; descriptors travel beside it (SCM_RIGHTS).
"""

from __future__ import annotations

import json
from typing import Any

from kvtier.errors import InvalidRequestError

VERSION = 1
MAX_MESSAGE_BYTES = 64 << 10
#: SCM_RIGHTS carries at most 64 here; one of them is the generation table.
MAX_EXTENTS_PER_REQUEST = 63

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Raises InvalidRequestError for anything that is not a JSON object."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the attach message is not JSON") from error
    if not isinstance(message, dict):
        raise InvalidRequestError("the attach message is not a JSON object")
    return message


def text(message: Message, name: str) -> str:
    """A string field. Raises InvalidRequestError."""
    value = message.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"attach message: {name} must be a string")
    return value


def token(message: Message, name: str, size_bytes: int) -> bytes:
    """A field of so many bytes in hexadecimal. Raises InvalidRequestError."""
    try:
        value = bytes.fromhex(text(message, name))
    except ValueError as error:
        raise InvalidRequestError(f"attach message: {name} must be hexadecimal") from error
    if len(value) != size_bytes:
        raise InvalidRequestError(f"attach message: {name} must have {size_bytes} bytes")
    return value


def numbers(message: Message, name: str, limit: int) -> list[int]:
    """A list of at most `limit` whole numbers. Raises InvalidRequestError."""
    value = message.get(name)
    if (
        not isinstance(value, list)
        or len(value) > limit
        or not all(type(each) is int for each in value)
    ):
        raise InvalidRequestError(
            f"attach message: {name} must be a list of at most {limit} whole numbers"
        )
    return value

"""Messages of the attach socket, as ARCHITECTURE.md describes them.

Each is one SOCK_SEQPACKET packet. Those about the attachment are compact JSON objects; descriptors
travel beside them (SCM_RIGHTS). Direct calls are binary: they carry the messages of the BlockCache
service without gRPC, which takes ten times as long for a small call.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from kvtier.errors import InvalidRequestError

VERSION = 1
TOKEN_BYTES = 16
MAX_MESSAGE_BYTES = 64 << 10
#: SCM_RIGHTS carries at most 64 here; one of them is the generation table.
MAX_EXTENTS_PER_REQUEST = 63
#: A handle of one has some 500 bytes.
MAX_DEVICE_EXTENTS_PER_REQUEST = 32
#: Of a direct call's request; larger ones use gRPC.
MAX_DIRECT_BYTES = 16 << 10
MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES - 64
#: A status code beside gRPC's: the answer would be too long, the caller is to use gRPC.
TOO_LARGE = 255

Message = dict[str, Any]

MAX_TIMEOUT_MS = 0xFFFFFFFF

_CALL, _ANSWER = 1, 2
#: Kind, milliseconds until the deadline, bytes of the method's name; then name, token, request.
_CALL_HEAD = struct.Struct("<BIB")


@dataclass(frozen=True, slots=True)
class DirectCall:
    """A method of BlockCache, the session it is for, and its serialized request."""

    method: str
    session_token: bytes
    timeout_ms: int
    request: bytes


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


def encode_call(call: DirectCall) -> bytes:
    method = call.method.encode()
    head = _CALL_HEAD.pack(_CALL, call.timeout_ms, len(method))
    return head + method + call.session_token + call.request


def is_call(data: bytes) -> bool:
    return data[0] == _CALL


def decode_call(data: bytes) -> DirectCall:
    """Raises InvalidRequestError if it is cut short."""
    name_start = _CALL_HEAD.size
    if len(data) < name_start:
        raise InvalidRequestError("the direct call is cut short")
    _, timeout_ms, name_bytes = _CALL_HEAD.unpack_from(data)
    token_start = name_start + name_bytes
    token_end = token_start + TOKEN_BYTES
    if len(data) < token_end:
        raise InvalidRequestError("the direct call is cut short")
    method = data[name_start:token_start].decode("ascii", "replace")
    return DirectCall(method, data[token_start:token_end], timeout_ms, data[token_end:])


def encode_answer(code: int, body: bytes) -> bytes:
    """`code` is 0 and `body` the serialized response, or a gRPC status code and a message: of
    RESOURCE_EXHAUSTED a google.rpc.Status, which says when to try again (`core.retry_info`)."""
    return bytes([_ANSWER, code]) + body


def is_answer(data: bytes) -> bool:
    return data[0] == _ANSWER


def decode_answer(data: bytes) -> tuple[int, bytes]:
    """The code and the body."""
    return data[1], data[2:]


def text(message: Message, name: str) -> str:
    """A string field. Raises InvalidRequestError."""
    value = message.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"attach message: {name} must be a string")
    return value


def token(message: Message, name: str) -> bytes:
    """A token in hexadecimal. Raises InvalidRequestError."""
    try:
        value = bytes.fromhex(text(message, name))
    except ValueError as error:
        raise InvalidRequestError(f"attach message: {name} must be hexadecimal") from error
    if len(value) != TOKEN_BYTES:
        raise InvalidRequestError(f"attach message: {name} must have {TOKEN_BYTES} bytes")
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

"""Replies of a server (RESP2), payloads among them straight into the memory they are for.

Nothing that a server sends makes this take more memory than MAX_REPLY_BYTES beside the payload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from redis._parsers import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError

from kvtier.memory import ByteArray
from kvtier.tiers.cluster.channel import Channel, channel_of

MAX_REPLY_BYTES = 16 << 20
#: Also the longest line: errors and numbers are far shorter.
_BUFFER_BYTES = 64 << 10
_MAX_DEPTH = 8
_MAX_DRAINED_BYTES = 4 << 20
#: The server has handed over the rest to its kernel when so little is left of a payload.
_NEARLY_READ_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Misfit:
    """There is a value, but not of the size that was asked for (-1: not even a string)."""

    size_bytes: int


def _nothing() -> None:
    pass


class ReplyParser(BaseParser):
    """Reads for one connection of redis-py, which calls `on_connect` and `read_response`.

    An exception leaves the place in the stream unknown: the connection is dropped then. Error
    replies are returned, they are no exception. Waits end by this thread's deadline.
    """

    def __init__(self, socket_read_size: int = 0) -> None:
        self._channel: Channel | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._bytes = np.frombuffer(self._buffer, np.uint8)
        self._start = 0
        self._end = 0
        self._budget_bytes = 0

    def on_connect(self, connection: Any) -> None:
        self._channel = channel_of(connection._sock)
        self._start = self._end = 0

    def on_disconnect(self) -> None:
        self._channel = None
        self._start = self._end = 0

    def can_read(self, timeout: float = 0) -> bool:
        """Whether there is something that nobody asked for; then the connection is no good.

        Raises redis-py's ConnectionError if the server has closed it. Does not wait.
        """
        return self._start < self._end or self.channel.has_data()

    def read_response(self, disable_decoding: bool = False, timeout: object = None) -> Any:
        """Any reply, as redis-py wants it: bytes, int, None, a list, or an error, not raised."""
        self._budget_bytes = MAX_REPLY_BYTES
        reply = self._read_any(_MAX_DEPTH)
        if isinstance(reply, RedisConnectionError):
            raise reply
        return reply

    def read_lines(self, count: int) -> list[bytes]:
        """So many replies of one line each, with their first byte: `+OK`, `:1`, `-ERR ...`."""
        lines: list[bytes] = []
        while len(lines) < count:
            end = self._buffer.rfind(b"\r\n", self._start, self._end)
            if end < 0:
                self._fill(_BUFFER_BYTES)
                continue
            lines += bytes(self._buffer[self._start : end]).split(b"\r\n")
            self._start = end + 2
        if len(lines) > count or not all(line.startswith((b":", b"+", b"-")) for line in lines):
            raise InvalidResponse("replies that do not fit the commands")
        return lines

    def read_block(
        self, head_bytes: int, cell: ByteArray, on_nearly_read: Callable[[], None] = _nothing
    ) -> bytes | Misfit | RedisError | None:
        """The head of a value, whose payload fills `cell`; None if there is no such key.

        `on_nearly_read` is called when little of the payload is left to be read. Raises
        TooLongReplyError for a value that does not fit and is too long to be read over.
        """
        wanted_bytes = head_bytes + cell.nbytes
        line = self._line(len(b"$%d\r\n" % wanted_bytes) + head_bytes)
        if line[:1] == b"-":
            return self.error(line)
        if line[:1] != b"$":
            raise InvalidResponse("a reply of another type than that of a value")
        size_bytes = _number(line)
        if size_bytes < 0:
            return None
        if size_bytes != wanted_bytes:
            self._drain(size_bytes)
            return Misfit(size_bytes)
        head = self._short_bytes(head_bytes)
        self._payload(cell, on_nearly_read)
        self._line_end()
        return head

    # A reply of any kind.

    def _read_any(self, depth: int) -> Any:
        line = self._line(_BUFFER_BYTES)
        self._spend(len(line) + 2)
        kind = line[:1]
        if kind == b"+":
            return line[1:]
        if kind == b"-":
            return self.error(line)
        if kind == b":":
            return _number(line)
        if kind == b"$":
            return self._read_bytes(_number(line))
        if kind == b"*":
            return self._read_list(_number(line), depth)
        raise InvalidResponse("this is not RESP")

    def _read_bytes(self, size_bytes: int) -> bytes | None:
        if size_bytes < 0:
            return None
        self._spend(size_bytes)
        data = self._short_bytes(size_bytes)
        self._line_end()
        return data

    def _read_list(self, count: int, depth: int) -> list[Any] | None:
        if count < 0:
            return None
        if depth == 0:
            raise InvalidResponse("lists in too many lists")
        return [self._read_any(depth - 1) for _ in range(count)]

    def error(self, line: bytes) -> RedisError:
        try:
            error: RedisError = self.parse_error(line[1:].decode("utf-8", "replace"))
        except ValueError as wrong:
            raise InvalidResponse("a redirection to nowhere") from wrong
        return error

    def _spend(self, size_bytes: int) -> None:
        self._budget_bytes -= size_bytes
        if self._budget_bytes < 0:
            raise InvalidResponse(f"a reply of more than {MAX_REPLY_BYTES} bytes")

    # Pieces of a reply.

    def _line(self, most_bytes: int) -> bytes:
        """Without its end; receives at most so many bytes at once, lest payload comes along."""
        searched = 0
        while True:
            end = self._buffer.find(b"\r\n", self._start + searched, self._end)
            if end >= 0:
                line = bytes(self._buffer[self._start : end])
                self._start = end + 2
                if not line:
                    raise InvalidResponse("an empty line")
                return line
            searched = max(0, self._end - self._start - 1)
            self._fill(most_bytes)

    def _line_end(self) -> None:
        if self._short_bytes(2) != b"\r\n":
            raise InvalidResponse("a value longer than announced")

    def _short_bytes(self, size_bytes: int) -> bytes:
        taken = bytes(self._buffer[self._start : min(self._end, self._start + size_bytes)])
        self._start += len(taken)
        if len(taken) == size_bytes:
            return taken
        rest = bytearray(size_bytes - len(taken))
        self.channel.receive_all(memoryview(rest))
        return taken + rest

    def _payload(self, cell: ByteArray, on_nearly_read: Callable[[], None]) -> None:
        view: Any = cell  # NumPy's stubs know the buffer protocol from Python 3.12 on
        here = min(cell.nbytes, self._end - self._start)
        cell[:here] = self._bytes[self._start : self._start + here]
        self._start += here
        rest = memoryview(view)[here:]
        before = max(0, len(rest) - _NEARLY_READ_BYTES)
        self.channel.receive_all(rest[:before])
        on_nearly_read()
        self.channel.receive_all(rest[before:])

    def _drain(self, size_bytes: int) -> None:
        if size_bytes > _MAX_DRAINED_BYTES:
            raise TooLongReplyError(size_bytes)
        left = size_bytes
        while left:
            if self._start == self._end:
                self._fill(min(left, _BUFFER_BYTES))
            here = min(left, self._end - self._start)
            self._start += here
            left -= here
        self._line_end()

    # The socket.

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            raise RedisConnectionError("the connection is closed")
        return self._channel

    def _fill(self, most_bytes: int) -> None:
        """At least one more byte into the buffer, and at most `most_bytes`."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            held = self._end - self._start
            self._buffer[:held] = self._buffer[self._start : self._end]
            self._start, self._end = 0, held
        if self._end == _BUFFER_BYTES:
            raise InvalidResponse(f"a line of more than {_BUFFER_BYTES} bytes")
        end = min(self._end + most_bytes, _BUFFER_BYTES)
        self._end += self.channel.receive(memoryview(self._buffer)[self._end : end])


class TooLongReplyError(RedisConnectionError):
    """A value that was not read over: the connection is dropped instead."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"a value of {size_bytes} bytes")
        self.size_bytes = size_bytes


def _number(line: bytes) -> int:
    digits = line[1:]
    if not (digits.isdigit() or (digits[:1] == b"-" and digits[1:].isdigit())) or len(line) > 20:
        raise InvalidResponse("a number that is none")
    return int(digits)

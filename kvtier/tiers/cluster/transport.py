"""Connections of redis-py through which payloads pass without being copied."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from redis.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import SentinelManagedConnection

from kvtier.memory import ByteArray
from kvtier.tiers.cluster.deadline import seconds_left
from kvtier.tiers.cluster.replies import Misfit, ReplyParser

T = TypeVar("T")
Buffer = bytes | ByteArray

_MOMENT_SECONDS = 0.001


class BlockConnection(AbstractConnection):
    """What is added to each kind of connection that redis-py has.

    All waits end by the thread's deadline. After any exception but ResponseError the connection
    has been dropped; redis-py makes another when it is used again. One thread at a time.
    """

    _parser: ReplyParser

    def __init__(self, **kwargs: Any) -> None:
        kwargs.update(parser_class=ReplyParser, protocol=2)
        super().__init__(**kwargs)

    # redis-py sets its timeouts from these wherever it waits for itself. They do not raise: it
    # would leave the socket open.

    @property
    def socket_timeout(self) -> float:
        return _seconds_left_or_none()

    @socket_timeout.setter
    def socket_timeout(self, value: float | None) -> None:
        self._socket_timeout = value

    @property
    def socket_connect_timeout(self) -> float:
        return min(self._socket_connect_timeout or 1.0, _seconds_left_or_none())

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: float | None) -> None:
        self._socket_connect_timeout = value

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """What redis-py sends for itself."""
        if not self._sock:
            self.connect_check_health(check_health=False)
        self.send([command] if isinstance(command, bytes) else list(command))

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """What redis-py reads for itself. Raises ResponseError; the connection is good then."""
        kwargs["disconnect_on_error"] = False
        with self._dropped_on_error():
            return super().read_response(*args, **kwargs)

    def call(self, *args: str | bytes | int) -> Any:
        """The reply to a small command. Raises ResponseError."""
        self.send_command(*args)
        return self.read_response()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends all of them, from where they are. Buffers are contiguous."""
        with self._dropped_on_error():
            self._parser.channel.send([view_of(each) for each in buffers if len(each)])

    def read_lines(self, count: int) -> list[bytes]:
        """As `ReplyParser.read_lines`."""
        return self._read(lambda: self._parser.read_lines(count))

    def read_block(
        self, head_bytes: int, cell: ByteArray, on_nearly_read: Callable[[], None]
    ) -> bytes | Misfit | RedisError | None:
        """As `ReplyParser.read_block`."""
        return self._read(lambda: self._parser.read_block(head_bytes, cell, on_nearly_read))

    def read_reply(self) -> Any:
        """As `ReplyParser.read_response`: error replies are returned."""
        return self._read(lambda: self._parser.read_response())

    def parse_error(self, line: bytes) -> RedisError:
        """What an error line says."""
        return self._parser.error(line)

    def _read(self, read: Callable[[], T]) -> T:
        with self._dropped_on_error():
            return read()

    @contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        """Nobody knows where in the stream a connection is after an error."""
        try:
            yield
        except ResponseError:
            raise
        except TimeoutError as error:
            self.disconnect()
            raise RedisTimeoutError(f"{self._host_error()} did not answer in time") from error
        except OSError as error:
            self.disconnect()
            raise RedisConnectionError(f"{self._host_error()}: {error}") from error
        except BaseException:
            self.disconnect()
            raise


class TcpConnection(BlockConnection, Connection):
    """To a server that does not use TLS."""


class UnixConnection(BlockConnection, UnixDomainSocketConnection):
    """To a server on this machine."""

    #: redis-py asks for it when it counts errors, and has none here.
    port = 0


class TlsConnection(TcpConnection):
    """Made with a context that exists already: making one reads all CA certificates."""

    def __init__(self, *, tls: ssl.SSLContext, **kwargs: Any) -> None:
        self._tls = tls
        super().__init__(**kwargs)

    def _connect(self) -> socket.socket:
        sock: socket.socket = super()._connect()
        try:
            sock.settimeout(self.socket_connect_timeout)
            return self._tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise


class SentinelTcpConnection(BlockConnection, SentinelManagedConnection):
    """To the master that Sentinel names."""


class SentinelTlsConnection(TlsConnection, SentinelManagedConnection):
    """As SentinelTcpConnection, with TLS."""


def _seconds_left_or_none() -> float:
    """A moment at least: 0 would be no timeout but another mode of the socket."""
    try:
        return max(seconds_left(), _MOMENT_SECONDS)
    except TimeoutError:
        return _MOMENT_SECONDS


def view_of(buffer: Buffer) -> memoryview:
    """Of the memory itself."""
    exporter: Any = buffer  # NumPy's stubs know the buffer protocol from Python 3.12 on
    return memoryview(exporter)

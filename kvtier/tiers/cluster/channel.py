"""Bytes between memory and a socket, with waits that end by this thread's deadline."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from typing import Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

from kvtier.tiers.cluster.deadline import seconds_left

_MAX_BUFFERS = 1024  # IOV_MAX of Linux
#: How far the kernel's timeout may be from the time that is left.
_LONGEST_SHARE, _SHORTEST_SHARE = 1.1, 0.5


class Channel(Protocol):
    """All raise OSError; TimeoutError at the deadline, redis-py's ConnectionError at the end."""

    def receive(self, view: memoryview) -> int:
        """At least one byte."""

    def receive_all(self, view: memoryview) -> None:
        """Fills the memory."""

    def send(self, views: list[memoryview]) -> None:
        """All that they show; none is empty."""

    def has_data(self) -> bool:
        """Whether there is something to be received now. It may be received then."""


class PlainChannel:
    """A TCP or Unix socket, which blocks: the kernel knows the timeout.

    A socket that does not block would come back to Python for each piece of a payload, with two
    system calls and a wait for the GIL each time.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._timeouts = {socket.SO_RCVTIMEO: 0.0, socket.SO_SNDTIMEO: 0.0}

    def receive(self, view: memoryview) -> int:
        return self._receive(view, 0)

    def receive_all(self, view: memoryview) -> None:
        left = len(view)
        while left:
            left -= self._receive(view[-left:], socket.MSG_WAITALL)

    def _receive(self, view: memoryview, flags: int) -> int:
        while True:
            self._limit(socket.SO_RCVTIMEO)
            try:
                received = self._sock.recv_into(view, 0, flags)
            except BlockingIOError:
                continue  # the timeout of the kernel; the deadline is the next thing looked at
            if not received:
                raise _closed()
            return received

    def send(self, views: list[memoryview]) -> None:
        while views:
            self._limit(socket.SO_SNDTIMEO)
            try:
                sent = self._sock.sendmsg(views[:_MAX_BUFFERS])
            except BlockingIOError:
                continue
            done = 0
            while done < len(views) and sent >= views[done].nbytes:
                sent -= views[done].nbytes
                done += 1
            views = views[done:]
            if sent:
                views[0] = views[0][sent:]

    def has_data(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(0):
            return False
        if not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            raise _closed()
        return True

    def _limit(self, option: int) -> None:
        left = seconds_left()
        if _SHORTEST_SHARE * left < self._timeouts[option] < _LONGEST_SHARE * left:
            return
        self._timeouts[option] = left
        seconds, micros = divmod(max(1000, int(left * 1e6)), 1_000_000)
        self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", seconds, micros))


class TlsChannel:
    """A TLS socket: it moves a record of at most 16 KiB at a time, and has no sendmsg."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def receive(self, view: memoryview) -> int:
        self._sock.settimeout(seconds_left())
        received = self._sock.recv_into(view)
        if not received:
            raise _closed()
        return received

    def receive_all(self, view: memoryview) -> None:
        left = len(view)
        while left:
            left -= self.receive(view[-left:])

    def send(self, views: list[memoryview]) -> None:
        for view in views:
            while view:
                self._sock.settimeout(seconds_left())
                view = view[self._sock.send(view) :]

    def has_data(self) -> bool:
        # TLS has messages of its own, which only a read tells from data.
        self._sock.settimeout(0)
        try:
            if not self._sock.recv(1):
                raise _closed()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True


def channel_of(sock: socket.socket) -> Channel:
    """Takes the socket over, as far as its timeouts go."""
    return TlsChannel(sock) if isinstance(sock, ssl.SSLSocket) else PlainChannel(sock)


def _closed() -> RedisConnectionError:
    return RedisConnectionError("the server closed the connection")

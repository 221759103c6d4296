"""Who is compared by `kvtier bench cluster`: a bare socket, redis-py, and ClusterBlocks."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from typing import Any, Final, Protocol

import numpy as np
from redis import Redis

from kvtier import memory
from kvtier.core.block import BlockKey, Lane
from kvtier.memory import ByteArray
from kvtier.tiers.cluster.blocks import ClusterBlocks, Wanted
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.exchange import command
from kvtier.tiers.cluster.url import ClusterUrl, Transport

#: Threads, each with a connection of its own: what an agent's movers are by default.
CONNECTIONS = 2
TTL_SECONDS = 600
_TIMEOUT_SECONDS = 30.0
_HASH_BYTES = 32
IDENTITY: Final = bytes(range(32))
LANE: Final = Lane()


class Slots:
    """What blocks are stored from and fetched to: populated memfds, as an arena of HOST has."""

    def __init__(self, count: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.sources, self.cells = (_mapped(count, block_bytes) for _ in range(2))
        rng = np.random.default_rng(0)
        for source in self.sources:
            source[:] = np.frombuffer(rng.bytes(block_bytes), np.uint8)

    def __len__(self) -> int:
        return len(self.sources)


def _mapped(count: int, block_bytes: int) -> list[ByteArray]:
    fd = memory.create_memfd("kvtier-bench", count * block_bytes)
    try:
        mapped = memory.map_shared(fd, count * block_bytes, writable=True)
        memory.populate(fd, mapped, 0, len(mapped))
    finally:
        os.close(fd)
    return list(mapped.reshape(count, block_bytes))


class Contestant(Protocol):
    """Moves blocks; `worker` is the number of the calling thread, and of its connection."""

    def set(self, worker: int, positions: range) -> None: ...

    def get(self, worker: int, positions: range) -> None: ...


class Limit:
    """Bare blocking sockets and prepared commands."""

    def __init__(self, target: ClusterUrl, prefix: str, slots: Slots) -> None:
        self._slots = slots
        size_bytes = slots.block_bytes
        names = [f"{prefix}:limit:{number}".encode() for number in range(len(slots))]
        self._gets = [command(b"GET", name) for name in names]
        self._sets = [
            b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, size_bytes)
            for name in names
        ]
        self._set_end = b"\r\n$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(b"%d" % TTL_SECONDS), TTL_SECONDS)
        self._reply_start = b"$%d\r\n" % size_bytes
        self._sockets = [_connected(target) for _ in range(CONNECTIONS)]

    def set(self, worker: int, positions: range) -> None:
        sock, line = self._sockets[worker], bytearray(5)
        for position in positions:
            payload: Any = self._slots.sources[position]
            _send_all(sock, [self._sets[position], payload, self._set_end])
            _receive_all(sock, [line])
            assert line == b"+OK\r\n", line

    def get(self, worker: int, positions: range) -> None:
        sock = self._sockets[worker]
        start, end = bytearray(len(self._reply_start)), bytearray(2)
        for position in positions:
            sock.sendall(self._gets[position])
            payload: Any = self._slots.cells[position]
            _receive_all(sock, [start, payload, end])
            assert start == self._reply_start, start

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _connected(target: ClusterUrl) -> socket.socket:
    if target.transport is Transport.UNIX:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(target.path)
    else:
        [where] = target.addresses
        sock = socket.create_connection((where.host, where.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A timeout of Python's would make the socket one that does not block.
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(_TIMEOUT_SECONDS), 0))
    greetings = []
    if target.password:
        user = [target.user.encode()] if target.user else []
        greetings.append(command(b"AUTH", *user, target.password.encode()))
    if target.db:
        greetings.append(command(b"SELECT", b"%d" % target.db))
    for greeting in greetings:
        sock.sendall(greeting)
        _receive_all(sock, [bytearray(5)])
    return sock


def _send_all(sock: socket.socket, buffers: list[Any]) -> None:
    views = [memoryview(each) for each in buffers]
    while views:
        sent = sock.sendmsg(views)
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


def _receive_all(sock: socket.socket, buffers: list[Any]) -> None:
    received = sock.recvmsg_into(buffers, 0, socket.MSG_WAITALL)[0]
    if received != sum(len(each) for each in buffers):
        raise ConnectionError("the server's reply is not what it should be")


class RedisPy:
    """redis-py as everybody uses it: values are `bytes`."""

    def __init__(self, target: ClusterUrl, prefix: str, slots: Slots) -> None:
        where: dict[str, Any] = {"unix_socket_path": target.path}
        if target.addresses:
            where = {"host": target.addresses[0].host, "port": target.addresses[0].port}
        self._client = Redis(
            **where,
            db=target.db,
            username=target.user or None,
            password=target.password or None,
        )
        self._names = [f"{prefix}:redispy:{number}" for number in range(len(slots))]
        self._values = [source.tobytes() for source in slots.sources]

    def set(self, worker: int, positions: range) -> None:
        for position in positions:
            self._client.set(self._names[position], self._values[position], ex=TTL_SECONDS)

    def get(self, worker: int, positions: range) -> None:
        for position in positions:
            value: Any = self._client.get(self._names[position])
            assert len(value) == len(self._values[position])

    def close(self) -> None:
        self._client.close()


class Blocks:
    """Sealed and verified, `batch` blocks in each fetch."""

    def __init__(self, blocks: ClusterBlocks, slots: Slots, batch: int) -> None:
        self._blocks = blocks
        self._slots = slots
        self._batch = batch
        self.hashes = new_hashes(len(slots))

    def set(self, worker: int, positions: range) -> None:
        for position in positions:
            key = BlockKey(LANE, self.hashes[position])
            payload = self._slots.sources[position]
            self._blocks.store(IDENTITY, key, payload, Codec.NONE, soon())

    def get(self, worker: int, positions: range) -> None:
        for start in range(0, len(positions), self._batch):
            wanted = [
                Wanted(LANE, self.hashes[each], self._slots.cells[each], self._slots.block_bytes)
                for each in positions[start : start + self._batch]
            ]
            fetched = self._blocks.fetch(IDENTITY, wanted, soon())
            assert all(isinstance(each, BlockKey) for each in fetched), fetched


def new_hashes(count: int) -> list[bytes]:
    return [secrets.token_bytes(_HASH_BYTES) for _ in range(count)]


def soon() -> float:
    return time.monotonic() + _TIMEOUT_SECONDS

"""Which server has which key, and the connections to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from kvtier.tiers.cluster.deadline import seconds_left
from kvtier.tiers.cluster.transport import (
    BlockConnection,
    SentinelTcpConnection,
    SentinelTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from kvtier.tiers.cluster.url import ClusterUrl, Credentials, Deployment, TlsFiles, Transport

#: redis-py takes a connection for itself now and then, to ask for the topology.
_SPARE_CONNECTIONS = 4
#: A topology that is younger is not asked for again.
_MIN_AGE_SECONDS = 0.1


@dataclass(frozen=True)
class ClusterSettings:
    """What connections are made from."""

    url: ClusterUrl
    credentials: Credentials = field(default_factory=Credentials)
    tls: TlsFiles = field(default_factory=TlsFiles)
    #: To one server.
    connections: int = 4
    connect_timeout_seconds: float = 1.0


class Server:
    """The connections to one server, at most `connections` in use at a time. Any thread."""

    def __init__(self, pool: ConnectionPool, connections: int) -> None:
        self.pool = pool
        #: It failed when it was last used; others are asked before it.
        self.is_suspect = False
        self._free = threading.BoundedSemaphore(connections)
        self._is_closed = False

    @contextmanager
    def connection(self) -> Iterator[BlockConnection]:
        """One that is connected and that nobody else uses.

        Raises redis-py's errors, and TimeoutError if none is free by the thread's deadline. It is
        dropped if the block ends with an exception: there may be replies that nobody has read.
        """
        if not self._free.acquire(timeout=seconds_left()):
            raise TimeoutError("no connection became free in time")
        try:
            connection: Any = self.pool.get_connection()
            try:
                if self._is_closed:
                    raise RedisConnectionError("closed")
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self.pool.release(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Drops all connections, also those that are in use; nobody gets another."""
        self._is_closed = True
        self.pool.disconnect()

    def drop_idle(self) -> None:
        """Connections are made anew; for Sentinel that is how a new master is found."""
        self.pool.disconnect(inuse_connections=False)


class Topology(Protocol):
    """Calls may wait, up to the thread's deadline, and raise redis-py's errors."""

    #: Whether another server may have the key when one does not answer.
    has_others: bool

    def server_of(self, name: bytes) -> Server: ...

    def servers(self) -> list[Server]:
        """All that have keys."""

    def redirected(self, error: AskError) -> Server | None:
        """Whom MOVED or ASK names; None if there is no such thing here."""

    def refresh(self, failed: Server) -> None:
        """A server did not answer, or is not what it was."""

    def close(self) -> None: ...


class OneServer:
    """A server alone, or the master that Sentinel names."""

    def __init__(self, server: Server, *, has_others: bool) -> None:
        self.has_others = has_others
        self._server = server

    def server_of(self, name: bytes) -> Server:
        return self._server

    def servers(self) -> list[Server]:
        return [self._server]

    def redirected(self, error: AskError) -> Server | None:
        return None

    def refresh(self, failed: Server) -> None:
        failed.drop_idle()

    def close(self) -> None:
        self._server.close()
        if isinstance(self._server.pool, SentinelConnectionPool):
            for sentinel in self._server.pool.sentinel_manager.sentinels:
                sentinel.connection_pool.disconnect()


@dataclass
class Nodes:
    """Redis Cluster, as redis-py's NodesManager knows it; it is asked at the first use."""

    url: ClusterUrl
    kwargs: dict[str, Any]
    connections: int
    has_others: bool = True
    _is_closed: bool = False
    _manager: NodesManager | None = None
    _asked_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _servers: dict[str, Server] = field(default_factory=dict)

    def server_of(self, name: bytes) -> Server:
        return self._server(self._known().get_node_from_slot(key_slot(name)))

    def servers(self) -> list[Server]:
        return [self._server(node) for node in self._known().get_nodes_by_server_type("primary")]

    def redirected(self, error: AskError) -> Server | None:
        nodes = self._known()
        if isinstance(error, MovedError):
            nodes.move_slot(error)
        return self._server(nodes.get_node(error.host, error.port) or ClusterNode(*error.node_addr))

    def refresh(self, failed: Server) -> None:
        failed.drop_idle()
        asked_at = time.monotonic()
        with self._locked():
            if self._manager is None or self._asked_at > asked_at - _MIN_AGE_SECONDS:
                return
            name = next((each for each, one in self._servers.items() if one is failed), None)
            self._manager.initialize(
                disconnect_startup_nodes_pools=False, last_failed_node_name=name
            )
            self._asked_at = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for server in self._servers.values():
                server.close()
            if self._manager is not None:
                for node in self._manager.nodes_cache.values():
                    if node.redis_connection is not None:
                        node.redis_connection.connection_pool.disconnect()

    def _known(self) -> NodesManager:
        if self._manager is None:
            with self._locked():
                if self._manager is None:
                    seeds = [ClusterNode(each.host, each.port) for each in self.url.addresses]
                    self._manager = NodesManager(seeds, from_url=True, **self.kwargs)
        return self._manager

    def _server(self, node: ClusterNode) -> Server:
        """One for each name, whatever becomes of redis-py's nodes."""
        server = self._servers.get(node.name)
        if server is None:
            with self._locked():
                server = self._servers.get(node.name)
                if server is None:
                    pool = ConnectionPool(host=node.host, port=node.port, **self.kwargs)
                    server = self._servers[node.name] = Server(pool, self.connections)
        return server

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=seconds_left()):
            raise TimeoutError("others ask for the topology")
        try:
            if self._is_closed:
                raise RedisConnectionError("closed")
            yield
        finally:
            self._lock.release()


def connect(settings: ClusterSettings) -> Topology:
    """Connects to nothing yet. Raises ConfigError for TLS files that cannot be used."""
    url, credentials = settings.url, settings.credentials
    kwargs: dict[str, Any] = {
        "socket_connect_timeout": settings.connect_timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": settings.connections + _SPARE_CONNECTIONS,
        "driver_info": None,
        "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "db": url.db,
    }
    if url.transport is Transport.TLS:
        kwargs["tls"] = settings.tls.context()
    anonymous = dict(kwargs)
    user, password = credentials.user or url.user, credentials.password or url.password
    if user or password:  # a user may have none
        kwargs |= {"username": user or None, "password": password}
    kind = TlsConnection if url.transport is Transport.TLS else TcpConnection
    if url.deployment is Deployment.CLUSTER:
        return Nodes(url, kwargs | {"connection_class": kind}, settings.connections)
    if url.deployment is Deployment.SENTINEL:
        asking = anonymous | {"connection_class": kind, "db": 0}
        if credentials.sentinel_password:
            asking["password"] = credentials.sentinel_password
        pool: ConnectionPool = _sentinel_pool(url, asking, kwargs)
    elif url.transport is Transport.UNIX:
        pool = ConnectionPool(connection_class=UnixConnection, path=url.path, **kwargs)
    else:
        [where] = url.addresses
        pool = ConnectionPool(connection_class=kind, host=where.host, port=where.port, **kwargs)
    return OneServer(
        Server(pool, settings.connections), has_others=url.deployment is Deployment.SENTINEL
    )


def _sentinel_pool(
    url: ClusterUrl, asking: dict[str, Any], kwargs: dict[str, Any]
) -> SentinelConnectionPool:
    sentinel = Sentinel([])
    sentinel.sentinels = [
        Redis(connection_pool=ConnectionPool(host=each.host, port=each.port, **asking))
        for each in url.addresses
    ]
    is_tls = url.transport is Transport.TLS
    kind = SentinelTlsConnection if is_tls else SentinelTcpConnection
    return SentinelConnectionPool(url.master, sentinel, connection_class=kind, **kwargs)

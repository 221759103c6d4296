"""Redis Cluster and Sentinel on this machine, made of `kvtier.testing.redis_servers`."""

from __future__ import annotations

from typing import Any

import redis
from redis.crc import key_slot

from kvtier.testing.redis_servers import HOST, RedisServer, free_port, wait_for

_SLOTS = 16384
_MASTER_NAME = "blocks"


class RedisCluster:
    """Masters with all slots between them, and as many replicas of each; a context manager."""

    def __init__(self, masters: int = 3, replicas: int = 0, node_timeout_ms: int = 1000) -> None:
        self.replicas_each = replicas
        self.nodes = [
            RedisServer(
                options={
                    "cluster-enabled": "yes",
                    "cluster-port": str(free_port()),
                    "cluster-node-timeout": str(node_timeout_ms),
                    "cluster-config-file": "nodes.conf",
                }
            )
            for _ in range(masters * (1 + replicas))
        ]
        self.masters = self.nodes[:masters]
        self.replicas = self.nodes[masters:]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def owner_of(self, name: bytes) -> RedisServer:
        """The first master by whose own account the slot of this name is its own."""
        slot = key_slot(name)
        for node in self.nodes:
            if node.is_running and slot in _slots_of(node):
                return node
        raise LookupError("no node has this slot")

    def begin_to_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """From now on the source answers ASK for names that it has not, or no longer."""
        target.call("CLUSTER SETSLOT", slot, "IMPORTING", _id_of(source))
        source.call("CLUSTER SETSLOT", slot, "MIGRATING", _id_of(target))

    def move_values(self, slot: int, source: RedisServer, target: RedisServer) -> int:
        """How many were moved; at most ten."""
        names = source.call("CLUSTER GETKEYSINSLOT", slot, 10)
        for name in names:
            source.call("MIGRATE", HOST, target.port, name, 0, 5000)
        return len(names)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """From now on the source answers MOVED."""
        for node in (target, *self.masters):
            node.call("CLUSTER SETSLOT", slot, "NODE", _id_of(target))

    def __enter__(self) -> RedisCluster:
        try:
            for node in self.nodes:
                node.start()
            self._form()
        except BaseException:
            self.close()
            raise
        return self

    def _form(self) -> None:
        count = len(self.masters)
        first = self.nodes[0]
        for number, node in enumerate(self.masters):
            begin, end = _SLOTS * number // count, _SLOTS * (number + 1) // count - 1
            node.call("CLUSTER ADDSLOTSRANGE", begin, end)
            node.call("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = first.options["cluster-port"]
            node.call("CLUSTER MEET", HOST, first.port, bus)
        total = len(self.nodes)
        wait_for(lambda: all(_known_nodes(node) == total for node in self.nodes), first.log_path)
        for number, node in enumerate(self.replicas):
            node.call("CLUSTER REPLICATE", _id_of(self.masters[number % count]))
        for node in self.replicas:
            wait_for(lambda node=node: _is_replicating(node), node.log_path)  # type: ignore[misc]
        wait_for(lambda: all(_is_cluster_ok(node) for node in self.nodes), first.log_path)

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


class SentinelServer(RedisServer):
    """One Sentinel; it has a configuration file, which it writes to."""

    def __init__(self, master: RedisServer, quorum: int, down_after_ms: int) -> None:
        super().__init__()
        (self.directory / "sentinel.conf").write_text(
            f"sentinel monitor {_MASTER_NAME} {HOST} {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {_MASTER_NAME} {down_after_ms}\n"
            f"sentinel failover-timeout {_MASTER_NAME} 3000\n"
        )
        unwanted = ("save", "appendonly", "maxmemory", "maxmemory-policy")
        self.options = {k: v for k, v in self.options.items() if k not in unwanted}

    def arguments(self) -> list[str]:
        return [str(self.directory / "sentinel.conf"), "--sentinel"]


class SentinelSet:
    """A master, a replica, and three Sentinels; a context manager."""

    def __init__(self, down_after_ms: int = 500) -> None:
        self.first = RedisServer()
        replication = {"replicaof": f"{HOST} {self.first.port}", "repl-diskless-sync-delay": "0"}
        self.second = RedisServer(options=replication)
        self.sentinels = [SentinelServer(self.first, 2, down_after_ms) for _ in range(3)]

    @property
    def url(self) -> str:
        where = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{where}/{_MASTER_NAME}"

    @property
    def master_port(self) -> int:
        """As the first Sentinel sees it."""
        return int(self.sentinels[0].call("SENTINEL MASTER", _MASTER_NAME)["port"])

    def __enter__(self) -> SentinelSet:
        try:
            for server in (self.first, self.second, *self.sentinels):
                server.start()
            wait_for(self._is_complete, self.sentinels[0].log_path)
        except BaseException:
            self.close()
            raise
        return self

    def _is_complete(self) -> bool:
        if not _is_replicating(self.second):
            return False
        seen = [each.call("SENTINEL MASTER", _MASTER_NAME) for each in self.sentinels]
        return all(int(s["num-slaves"]) == 1 and int(s["num-other-sentinels"]) == 2 for s in seen)

    def close(self) -> None:
        for server in (*self.sentinels, self.second, self.first):
            server.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _id_of(node: RedisServer) -> str:
    return str(node.call("CLUSTER MYID").decode())


def _slots_of(node: RedisServer) -> set[int]:
    mine: set[int] = set()
    for begin, end, master, *_ in _raw(node, "CLUSTER", "SLOTS"):
        if int(master[1]) == node.port:
            mine |= set(range(begin, end + 1))
    return mine


def _raw(node: RedisServer, *words: str) -> Any:
    """The reply as it is, without redis-py's shaping."""
    client = redis.Redis(unix_socket_path=str(node.socket_path), driver_info=None, protocol=2)
    with client:
        connection = client.connection_pool.get_connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            client.connection_pool.release(connection)


def _known_nodes(node: RedisServer) -> int:
    lines = _raw(node, "CLUSTER", "NODES").decode().splitlines()
    return sum("handshake" not in line for line in lines)


def _is_replicating(node: RedisServer) -> bool:
    return b"master_link_status:up" in _raw(node, "INFO", "replication")


def _is_cluster_ok(node: RedisServer) -> bool:
    return b"cluster_state:ok" in _raw(node, "CLUSTER", "INFO")

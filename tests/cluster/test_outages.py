"""Servers and networks go bad under load: misses, no wrong byte, and the cluster is used again
within 5 seconds of its return.

Each outage: a writer on one node and a reader on another go on all the time, as does a worker
whose blocks are in HOST.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kvtier.testing.redis_cluster import RedisCluster, SentinelSet
from kvtier.testing.redis_servers import RedisServer, free_port
from kvtier.testing.tcp_proxy import TcpProxy
from tests.cluster.agents import (
    ACTIVE,
    DEGRADED,
    LOOKUP_SECONDS,
    UNAVAILABLE,
    Outcome,
    Peer,
    peers,
    store,
    wait_for_all,
    wait_for_outcome,
)
from tests.cluster.agents import load as cached
from tests.cluster.load import SPEC, Load
from tests.faults.blocks import KIB, MIB, hashes_of
from tests.faults.repetitions import PATIENCE, in_full, times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.cluster

_ROUNDS = max(1, times(30) // 10)
_OUT_SECONDS = PATIENCE * 2.0
_BACK_SECONDS = PATIENCE * 5.0
_STEADY_SECONDS = 10.0
#: Of a lookup, over lookup_timeout: two processors for two agents, servers and this.
_MARGIN_SECONDS = 0.4
_STEADY_HITS = 40
_LIMIT_SECONDS = LOOKUP_SECONDS + _MARGIN_SECONDS


@contextmanager
def _server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=256 * MIB) as server:
        yield server


@contextmanager
def _load_on(url: str, name: str) -> Iterator[tuple[Load, list[Peer]]]:
    """Two agents under load, which have found their hits; they are judged at the end."""
    with peers(url, tiers__host__capacity="96MiB") as both:
        load = Load(both[0], both[1], name)
        with load:
            _hits(load, _STEADY_SECONDS)
            yield load, both
        load.judge(_LIMIT_SECONDS)


def _hits(load: Load, seconds: float, count: int = _STEADY_HITS) -> None:
    """Until so many further blocks have come from the cluster."""
    goal = load.cluster_hits + count
    wait_until(lambda: load.cluster_hits >= goal, seconds)


def _writes(peer: Peer, count: int) -> None:
    """Until the node has written so many further blocks."""
    goal = peer.cluster.demoted_count + count
    wait_until(lambda: peer.cluster.demoted_count >= goal, 2 * _STEADY_SECONDS)


def _out(both: list[Peer], states: tuple[int, ...], seconds: float = _OUT_SECONDS) -> None:
    """Until each node says so. A call for stats takes a moment itself."""
    for peer in both:
        wait_until(lambda peer=peer: peer.state in states, seconds)  # type: ignore[misc]
        assert peer.cluster.reason


def _back(load: Load, both: list[Peer], seconds: float = _BACK_SECONDS) -> None:
    """Until each node says that it is good again, and then a block comes from it."""
    hits_when_good: list[int] = []

    def is_back() -> bool:
        if hits_when_good:
            return load.cluster_hits > hits_when_good[0]
        if all(peer.state == ACTIVE for peer in both):
            hits_when_good.append(load.cluster_hits)
        return False

    wait_until(is_back, seconds)


def _outage(
    load: Load, both: list[Peer], begin: Callable[[], object], end: Callable[[], object]
) -> None:
    """Of the whole deployment."""
    begin()
    _out(both, (UNAVAILABLE,))
    wrong = load.reading.outcome.wrong
    lookups = len(load.reading.lookups)
    wait_until(lambda: len(load.reading.lookups) > lookups + 10, _STEADY_SECONDS)
    assert load.reading.outcome.wrong == wrong
    end()
    _back(load, both)


def test_a_server_is_killed() -> None:
    with _server() as server, _load_on(server.url, "killed") as (load, both):
        for _ in range(_ROUNDS):
            _outage(load, both, server.kill, server.start)


def test_a_server_is_stopped() -> None:
    with _server() as server, _load_on(server.url, "stopped") as (load, both):
        for _ in range(_ROUNDS):
            _outage(load, both, server.pause, server.resume)


def test_a_server_is_restarted_and_empty() -> None:
    with _server() as server, _load_on(server.url, "restarted") as (load, both):
        for _ in range(_ROUNDS):
            server.kill()
            server.start()
            _back(load, both)


def test_a_server_is_full() -> None:
    with _server() as server, _load_on(server.url, "full") as (load, both):

        def fill() -> None:
            server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            server.call("CONFIG", "SET", "maxmemory", "1mb")

        def empty() -> None:
            server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            server.call("CONFIG", "SET", "maxmemory", "256mb")

        for number in range(_ROUNDS):
            _no_writes(load, both, f"full-{number}", fill, empty)


def test_a_server_becomes_a_replica() -> None:
    with _server() as server, _load_on(server.url, "replica") as (load, both):

        def follow() -> None:
            # A master that is not there: it keeps what it has, and answers READONLY.
            server.call("REPLICAOF", "127.0.0.1", free_port())

        def lead() -> None:
            server.call("REPLICAOF", "NO", "ONE")

        for number in range(_ROUNDS):
            _no_writes(load, both, f"replica-{number}", follow, lead)


def _no_writes(
    load: Load, both: list[Peer], name: str, begin: Callable[[], object], end: Callable[[], object]
) -> None:
    """What is there is still read, also by a worker that is new on its node."""
    spec, hashes = replace(SPEC, name=name), hashes_of(name, 64)
    store(both[0].client.namespace(spec), hashes)
    both[0].flush()
    begin()
    _out(both[:1], (DEGRADED,))
    there = both[1].client.namespace(spec)
    wait_for_all(there, hashes, _BACK_SECONDS)
    assert cached(there, hashes) == Outcome(right=64)
    assert both[0].state == DEGRADED
    end()
    _back(load, both)


@in_full
def test_a_network_is_slow() -> None:
    """Slower than a lookup waits, faster than an exchange may be: what is known then is used."""
    with (
        _server() as server,
        TcpProxy(server.port) as proxy,
        _load_on(proxy.url, "slow") as (load, both),
    ):
        for number in range(_ROUNDS):
            hashes = hashes_of(f"slow {number}", 32)
            store(both[0].client.namespace(SPEC), hashes)
            both[0].flush()
            proxy.delay(LOOKUP_SECONDS / 2)
            there = both[1].client.namespace(SPEC)
            wait_for_all(there, hashes, _STEADY_SECONDS)
            # A load takes what comes within the time of an exchange.
            wait_for_outcome(there, hashes, Outcome(right=32), _STEADY_SECONDS)
            # Many exchanges in a row take long, and are no outage.
            _writes(both[0], 60)
            assert [(peer.state, peer.cluster.reason) for peer in both] == [(ACTIVE, "")] * 2
            proxy.pass_on()
            _back(load, both)
        assert not any("UNAVAILABLE" in peer.agent.log for peer in both)


def test_a_network_is_too_slow() -> None:
    with (
        _server() as server,
        TcpProxy(server.port) as proxy,
        _load_on(proxy.url, "too slow") as (load, both),
    ):
        for _ in range(_ROUNDS):
            _outage(load, both, lambda: proxy.delay(3.0), proxy.pass_on)


def test_a_network_cuts_replies() -> None:
    """Within a block's payload, on every connection: small questions are answered all the while."""
    with (
        _server() as server,
        TcpProxy(server.port) as proxy,
        _load_on(proxy.url, "cut") as (load, both),
    ):
        for _ in range(_ROUNDS):
            proxy.cut_after(100 * KIB)
            _out(both[1:], (UNAVAILABLE,), 2 * _OUT_SECONDS)
            proxy.pass_on()
            _back(load, both)


def test_a_network_cuts_every_reply() -> None:
    with (
        _server() as server,
        TcpProxy(server.port) as proxy,
        _load_on(proxy.url, "cut short") as (load, both),
    ):
        for _ in range(_ROUNDS):
            _outage(load, both, lambda: proxy.cut_after(3), proxy.pass_on)


def test_a_network_swallows_everything() -> None:
    with (
        _server() as server,
        TcpProxy(server.port) as proxy,
        _load_on(proxy.url, "swallowed") as (load, both),
    ):
        for _ in range(_ROUNDS):
            _outage(load, both, proxy.swallow, proxy.pass_on)


@in_full
def test_sentinel_fails_over() -> None:
    with SentinelSet() as servers, _load_on(servers.url, "sentinel") as (load, both):
        servers.first.kill()
        _out(both, (UNAVAILABLE,))
        wait_until(lambda: servers.master_port == servers.second.port, 20.0)
        _back(load, both)


@in_full
def test_a_master_of_a_cluster_is_killed() -> None:
    with RedisCluster(replicas=1) as cluster, _load_on(cluster.url, "cluster") as (load, both):
        cluster.masters[0].kill()
        wait_until(lambda: cluster.replicas[0].call("ROLE")[0] == b"master", 20.0)
        _back(load, both)
        # All of it, for long enough that nobody meets the dead node any more.
        wait_until(lambda: all(peer.state == ACTIVE for peer in both), _BACK_SECONDS)
        _hits(load, _STEADY_SECONDS, 200)

"""Behaviour of `kvtier.tiers.cluster.store` on Redis Cluster and behind Sentinel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pytest
from redis.crc import key_slot

from kvtier.memory import ByteArray
from kvtier.testing.redis_cluster import RedisCluster, SentinelSet
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.exchange import Fetch
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import parse_url
from tests.unit.tiers.cluster.values import fetch_into, get

HEAD = b"head"
T = TypeVar("T")


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def payload(seed: int, size_bytes: int = 300_000) -> ByteArray:
    return np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(3) as servers:
        yield servers


@pytest.fixture
def store(cluster: RedisCluster) -> Iterator[ClusterStore]:
    store = ClusterStore(ClusterSettings(parse_url(cluster.url)))
    yield store
    store.close()


def test_a_cluster_keeps_blocks_on_all_its_masters(
    cluster: RedisCluster, store: ClusterStore
) -> None:
    names = [b"spread-%d" % number for number in range(24)]
    for number, name in enumerate(names):
        assert store.store(name, [HEAD, payload(number)], 60, soon())
    cells = [np.zeros(300_000, np.uint8) for _ in names]
    fetches = [Fetch(name, 4, cell) for name, cell in zip(names, cells, strict=True)]
    assert store.fetch(fetches, soon()) == [HEAD] * len(names)
    assert all(np.array_equal(cell, payload(number)) for number, cell in enumerate(cells))
    assert all(node.call("DBSIZE") for node in cluster.masters)
    assert set(store.scan(b"spread-", soon())) == set(names)
    assert store.exist([*names, b"missing"], soon()) == [True] * len(names) + [False]
    assert store.delete(names, soon()) == len(names)
    report = store.check(soon())
    assert (report.mode, report.servers) == ("cluster", 3)


def test_512_names_take_one_round_trip_for_each_server(
    cluster: RedisCluster, store: ClusterStore
) -> None:
    names = [b"absent-%d" % number for number in range(512)]
    store.exist(names, soon())
    before = [node.call("INFO", "stats")["total_reads_processed"] for node in cluster.masters]
    store.exist(names, soon())
    after = [node.call("INFO", "stats")["total_reads_processed"] for node in cluster.masters]
    # A read takes 16 KiB; the question about what has been read is one itself, with its greeting.
    assert all(late - early <= 4 for early, late in zip(before, after, strict=True))


def test_loads_go_on_while_a_slot_moves(cluster: RedisCluster, store: ClusterStore) -> None:
    names = [b"{moving}-%d" % number for number in range(6)]
    slot = key_slot(names[0])
    source = cluster.owner_of(names[0])
    target = next(node for node in cluster.masters if node is not source)
    for number, name in enumerate(names):
        store.store(name, [HEAD, payload(number)], 60, soon())
    wrong: list[str] = []
    rounds = 0
    is_over = threading.Event()

    def load() -> None:
        nonlocal rounds
        cells = [np.zeros(300_000, np.uint8) for _ in names]
        fetches = [Fetch(name, 4, cell) for name, cell in zip(names, cells, strict=True)]
        while not is_over.is_set():
            for cell in cells:
                cell.fill(0)
            found = store.fetch(fetches, soon())
            wrong.extend(str(each) for each in found if each != HEAD)
            wrong.extend(
                f"bytes of {number}"
                for number, cell in enumerate(cells)
                if not np.array_equal(cell, payload(number))
            )
            rounds += 1

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        cluster.begin_to_move(slot, source, target)
        # Names that nobody has are asked for at the target, new ones are stored there.
        assert store.exist([b"{moving}-none", names[0]], soon()) == [False, True]
        assert store.store(b"{moving}-new", [b"value"], 60, soon())
        assert target.call("DBSIZE") >= 1
        while source.call("CLUSTER COUNTKEYSINSLOT", slot):
            source_names = source.call("CLUSTER GETKEYSINSLOT", slot, 1)
            source.call("MIGRATE", "127.0.0.1", target.port, source_names[0], 0, 5000)
            time.sleep(0.02)
        cluster.end_move(slot, target)
        time.sleep(0.1)
        assert get(store, [b"{moving}-new"], soon()) == [b"value"]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert rounds >= 2


@pytest.mark.parametrize("befall", [RedisServer.kill, RedisServer.pause])
def test_a_node_that_is_down_costs_only_its_own_blocks(
    befall: Callable[[RedisServer], None],
) -> None:
    with RedisCluster(3) as cluster:
        settings = ClusterSettings(parse_url(cluster.url), connect_timeout_seconds=0.2)
        store = ClusterStore(settings)
        names = [b"down-%d" % number for number in range(12)]
        for number, name in enumerate(names):
            store.store(name, [HEAD, payload(number)], 60, soon())
        lost = cluster.owner_of(names[0])
        is_lost = [cluster.owner_of(name) is lost for name in names]
        befall(lost)
        cells = [np.zeros(300_000, np.uint8) for _ in names]
        started = time.monotonic()
        found = store.fetch(
            [Fetch(name, 4, cell) for name, cell in zip(names, cells, strict=True)], soon(1.0)
        )
        assert time.monotonic() - started < 1.3
        assert [isinstance(each, ClusterDownError) for each in found] == is_lost
        assert all(
            down or np.array_equal(cell, payload(number))
            for number, (cell, down) in enumerate(zip(cells, is_lost, strict=True))
        )
        assert [each is None for each in store.exist(names, soon(1.0))] == is_lost
        store.close()


def test_a_replica_takes_over_and_is_found() -> None:
    with RedisCluster(3, 1) as cluster:
        store = ClusterStore(ClusterSettings(parse_url(cluster.url), connect_timeout_seconds=0.2))
        name = b"survives"
        store.store(name, [HEAD, payload(1)], 60, soon())
        master = cluster.owner_of(name)
        master.call("WAIT", 1, 2000)
        master.kill()
        cell = np.zeros(300_000, np.uint8)
        assert _until_it_works(lambda: fetch_into(store, name, 4, cell, soon(0.5))) == HEAD
        assert np.array_equal(cell, payload(1))
        assert store.store(name, [b"new"], 60, soon())
        store.close()


def test_sentinel_names_the_new_master() -> None:
    with SentinelSet() as servers:
        store = ClusterStore(ClusterSettings(parse_url(servers.url), connect_timeout_seconds=0.2))
        store.store(b"name", [HEAD, payload(1)], 600, soon())
        assert store.check(soon()).servers == 1
        servers.first.call("WAIT", 1, 2000)
        servers.first.kill()
        started = time.monotonic()
        with pytest.raises(ClusterDownError):
            store.store(b"other", [HEAD], 60, soon(0.3))
        assert time.monotonic() - started < 0.39
        assert _until_it_works(lambda: store.store(b"other", [HEAD], 60, soon(0.5)))
        cell = np.zeros(300_000, np.uint8)
        assert fetch_into(store, b"name", 4, cell, soon()) == HEAD
        assert np.array_equal(cell, payload(1))
        assert servers.master_port == servers.second.port
        # The old master comes back as a replica; a connection to it would be of no use.
        servers.second.call("CLIENT", "KILL", "TYPE", "normal")
        assert store.store(b"third", [HEAD], 60, soon())
        store.close()


def test_a_master_that_becomes_a_replica_is_left() -> None:
    with SentinelSet(down_after_ms=2000) as servers:
        store = ClusterStore(ClusterSettings(parse_url(servers.url)))
        store.store(b"name", [b"1"], 600, soon())
        servers.sentinels[0].call("SENTINEL FAILOVER", "blocks")
        assert _until_it_works(
            lambda: (
                store.store(b"name", [b"2"], 60, soon(1.0))
                and servers.first.call("ROLE")[0] in (b"slave", "slave")
            )
        )
        assert store.store(b"name", [b"3"], 60, soon())
        assert servers.second.call("GET", "name") == b"3"
        store.close()


def _until_it_works(call: Callable[[], T]) -> T:
    deadline = soon(15)
    while True:
        try:
            if result := call():
                return result
        except ClusterDownError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)

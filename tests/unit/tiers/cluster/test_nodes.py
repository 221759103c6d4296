"""Behaviour of `kvtier.tiers.cluster.nodes` on a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtier.core.block import Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.failure import ClusterDownError, Failure
from kvtier.tiers.cluster.nodes import (
    MAX_NAMESPACES,
    NodeNamespace,
    NodeRecord,
    NodeRegistry,
    NodeTier,
)
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import parse_url

NODES, GENERATIONS = b"t:1:nodes", b"t:1:generations"
LOCAL_TIME = 1000.0
FIRST, SECOND = bytes(32), bytes([7] * 32)
OLD, YOUNG = bytes([1] * 16), bytes([2] * 16)

RECORD = NodeRecord(
    node_id="node-1",
    name="one",
    epoch=2**64 - 1,
    version="1.2",
    pid=7,
    address="10.0.0.1",
    started_at=900.5,
    interval_seconds=2.0,
    namespaces=(NodeNamespace("default", "m", bytes(range(32)), OLD),),
    tiers=(NodeTier(Tier.HOST, 2**30, 2**20, 3), NodeTier(Tier.DISK, 2**40, 0, 0)),
)


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("nodes") / "valkey", 64 << 20) as running:
        yield running


@pytest.fixture
def store(valkey: EmbeddedValkey) -> Iterator[ClusterStore]:
    """Empty of what the registry writes."""
    store = ClusterStore(ClusterSettings(parse_url(valkey.url)))
    store.delete([NODES, GENERATIONS], soon())
    yield store
    store.close()


@pytest.fixture
def registry(store: ClusterStore) -> NodeRegistry:
    return NodeRegistry(store, key_prefix="t", wall_clock=lambda: LOCAL_TIME)


def ask(store: ClusterStore, name: bytes, *words: bytes) -> Any:
    [reply] = store.ask(name, [words], soon())
    assert not isinstance(reply, Exception)
    return reply


def server_time(store: ClusterStore) -> int:
    return int(ask(store, NODES, b"TIME")[0])


def record_of(store: ClusterStore, node_id: bytes = b"node-1") -> dict[str, Any]:
    """The stored document of a node, to be changed."""
    document: dict[str, Any] = json.loads(ask(store, NODES, b"HGET", NODES, node_id))
    return document


def put(store: ClusterStore, value: object, node_id: bytes = b"node-1") -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    ask(store, NODES, b"HSET", NODES, node_id, data)


def test_what_a_node_says_is_read_by_others(store: ClusterStore, registry: NodeRegistry) -> None:
    other = replace(RECORD, node_id="node-2", name="another", namespaces=(), tiers=())
    registry.announce(RECORD, soon())
    registry.announce(other, soon())
    found = registry.nodes(soon())
    assert [replace(each, seen_at=0.0) for each in found] == [other, RECORD]
    assert all(abs(each.seen_at - LOCAL_TIME) < 3 for each in found)
    assert 0 < ask(store, NODES, b"TTL", NODES) <= 24 * 60 * 60


def test_a_node_is_told_of_once(registry: NodeRegistry) -> None:
    registry.announce(RECORD, soon())
    registry.announce(replace(RECORD, version="1.3"), soon())
    assert [each.version for each in registry.nodes(soon())] == ["1.3"]
    registry.withdraw("node-1", soon())
    assert registry.nodes(soon()) == []
    registry.withdraw("node-1", soon())


def test_namespaces_beyond_a_bound_are_not_told_of(registry: NodeRegistry) -> None:
    longest = NodeNamespace("t" * 63, "n" * 63, bytes([255] * 32), YOUNG)
    registry.announce(replace(RECORD, namespaces=(longest,) * (MAX_NAMESPACES + 1)), soon())
    [found] = registry.nodes(soon())
    assert found.namespaces == (longest,) * MAX_NAMESPACES


@pytest.mark.parametrize("number", [1, 33])
def test_many_nodes_are_read(registry: NodeRegistry, number: int) -> None:
    names = {f"node-{each}" for each in range(number)}
    for name in names:
        registry.announce(replace(RECORD, node_id=name), soon())
    assert {each.node_id for each in registry.nodes(soon())} == names


@pytest.mark.parametrize(
    ("age_seconds", "is_alive", "is_kept"),
    [
        (4, True, True),
        (8, False, True),
        (50, False, True),
        (70, False, False),
        (-4, True, True),
        (-20, False, True),
        (-70, False, False),
    ],
)
def test_nodes_that_are_silent_are_gone_and_later_forgotten(
    store: ClusterStore, registry: NodeRegistry, age_seconds: int, is_alive: bool, is_kept: bool
) -> None:
    registry.announce(RECORD, soon())
    put(store, record_of(store) | {"seen_at": server_time(store) - age_seconds})
    found = registry.nodes(soon())
    assert bool(found) is is_alive
    assert all(abs(each.seen_at - (LOCAL_TIME - age_seconds)) < 3 for each in found)
    assert ask(store, NODES, b"HEXISTS", NODES, b"node-1") == is_kept


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"{",
        b"[" * 100_000,
        b"1" * 10_000,
        b"x" * (300 << 10),
        b"x" * (20 << 20),
    ],
)
def test_what_is_no_record_is_skipped(
    store: ClusterStore, registry: NodeRegistry, value: bytes
) -> None:
    registry.announce(replace(RECORD, node_id="node-2"), soon())
    put(store, value)
    put(store, value, b"node 3\n")
    assert [each.node_id for each in registry.nodes(soon())] == ["node-2"]
    registry.announce(RECORD, soon())
    assert len(registry.nodes(soon())) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"node_id": "node-2"},
        {"node_id": 1},
        {"name": "a\x1b[2Jb"},
        {"name": "\ud800"},
        {"name": None},
        {"version": "v" * 256},
        {"epoch": -1},
        {"epoch": 2**64},
        {"epoch": True},
        {"epoch": 1.5},
        {"pid": 2**31},
        {"started_at": float("nan")},
        {"started_at": 10**400},
        {"seen_at": "now"},
        {"seen_at": float("inf")},
        {"interval_seconds": 0},
        {"interval_seconds": -2},
        {"interval_seconds": 3601},
        {"interval_seconds": 1e-320},
        {"namespaces": None},
        {"namespaces": {"tenant": "a"}},
        {"namespaces": ["a"]},
        {"namespaces": [{"tenant": "a", "name": "b", "layout_digest": "", "generation_id": ""}]},
        {"tiers": "HOST"},
        {"tiers": [{"tier": 9, "capacity_bytes": 1, "used_bytes": 1, "block_count": 1}]},
        {"tiers": [{"tier": [], "capacity_bytes": 1, "used_bytes": 1, "block_count": 1}]},
        {"tiers": [{"tier": 2, "capacity_bytes": -1, "used_bytes": 1, "block_count": 1}]},
    ],
)
def test_a_record_with_a_wrong_field_is_skipped(
    store: ClusterStore, registry: NodeRegistry, wrong: dict[str, object]
) -> None:
    registry.announce(RECORD, soon())
    put(store, record_of(store) | wrong)
    assert registry.nodes(soon()) == []


def test_fields_of_later_versions_are_skipped(store: ClusterStore, registry: NodeRegistry) -> None:
    registry.announce(RECORD, soon())
    put(store, record_of(store) | {"colour": "red"})
    [found] = registry.nodes(soon())
    assert replace(found, seen_at=0.0) == RECORD


def test_something_else_than_a_hash_is_replaced(
    store: ClusterStore, registry: NodeRegistry
) -> None:
    for name in (NODES, GENERATIONS):
        ask(store, name, b"SET", name, b"anything")
    assert registry.nodes(soon()) == []
    registry.withdraw("node-1", soon())
    registry.announce(RECORD, soon())
    assert len(registry.nodes(soon())) == 1
    assert registry.exchange_generations({FIRST: OLD}, soon()) == {FIRST: OLD}
    assert registry.exchange_generations({FIRST: bytes(16)}, soon()) == {FIRST: OLD}


def test_the_youngest_generation_is_known_to_all(
    store: ClusterStore, registry: NodeRegistry
) -> None:
    other = NodeRegistry(store, key_prefix="t")
    assert registry.exchange_generations({FIRST: OLD, SECOND: YOUNG}, soon()) == {
        FIRST: OLD,
        SECOND: YOUNG,
    }
    assert other.exchange_generations({SECOND: OLD}, soon()) == {SECOND: YOUNG}
    assert other.exchange_generations({FIRST: YOUNG}, soon()) == {FIRST: YOUNG}
    assert registry.exchange_generations({FIRST: OLD, SECOND: YOUNG}, soon()) == {
        FIRST: YOUNG,
        SECOND: YOUNG,
    }
    assert registry.exchange_generations({}, soon()) == {}
    assert 0 < ask(store, GENERATIONS, b"TTL", GENERATIONS) <= 30 * 24 * 60 * 60


def test_namespaces_of_other_prefixes_are_others(
    store: ClusterStore, registry: NodeRegistry
) -> None:
    other = NodeRegistry(store, key_prefix="t:2")
    registry.announce(RECORD, soon())
    registry.exchange_generations({FIRST: YOUNG}, soon())
    assert other.nodes(soon()) == []
    assert other.exchange_generations({FIRST: OLD}, soon()) == {FIRST: OLD}
    store.delete([b"t:2:1:generations"], soon())


def test_a_use_prolongs_generations(store: ClusterStore, registry: NodeRegistry) -> None:
    registry.exchange_generations({FIRST: OLD}, soon())
    ask(store, GENERATIONS, b"EXPIRE", GENERATIONS, b"60")
    registry.exchange_generations({FIRST: OLD}, soon())
    assert ask(store, GENERATIONS, b"TTL", GENERATIONS) > 60


@pytest.mark.parametrize(
    "value", [b"", b"z" * 32, b" " * 32, b"ff" * 17, b"ff" * 15, b"\xff" * 32, b"x" * (20 << 20)]
)
def test_what_is_no_generation_is_written_over(
    store: ClusterStore, registry: NodeRegistry, value: bytes
) -> None:
    field = FIRST.hex().encode()
    ask(store, GENERATIONS, b"HSET", GENERATIONS, field, value)
    assert registry.exchange_generations({FIRST: OLD, SECOND: OLD}, soon()) == {
        FIRST: OLD,
        SECOND: OLD,
    }
    assert ask(store, GENERATIONS, b"HGET", GENERATIONS, field) == OLD.hex().encode()


def test_writers_at_once_come_to_the_same_generations(valkey: EmbeddedValkey) -> None:
    digests = [bytes([number] * 32) for number in range(50)]
    # Each is ahead for half of the namespaces.
    own = [
        {digest: (YOUNG, OLD)[(number + writer) % 2] for number, digest in enumerate(digests)}
        for writer in range(2)
    ]
    barrier = threading.Barrier(2)

    def work(writer: int, found: list[dict[bytes, bytes]]) -> None:
        store = ClusterStore(ClusterSettings(parse_url(valkey.url)))
        registry = NodeRegistry(store, key_prefix="race")
        for _ in range(3):
            barrier.wait(10)
            found.append(registry.exchange_generations(own[writer], soon()))
            registry.announce(replace(RECORD, node_id=f"node-{writer}"), soon())
        barrier.wait(10)
        found.append(registry.exchange_generations(own[writer], soon()))
        assert {each.node_id for each in registry.nodes(soon())} == {"node-0", "node-1"}
        store.close()

    results: list[list[dict[bytes, bytes]]] = [[], []]
    threads = [threading.Thread(target=work, args=(each, results[each])) for each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everywhere = dict.fromkeys(digests, YOUNG)
    assert [each[-1] for each in results] == [everywhere, everywhere]


def test_a_full_server_still_tells_of_generations() -> None:
    with RedisServer(policy="noeviction", maxmemory_bytes=0) as server:
        store = ClusterStore(ClusterSettings(parse_url(server.url)))
        registry = NodeRegistry(store, key_prefix="t")
        registry.exchange_generations({FIRST: YOUNG}, soon())
        server.call("CONFIG", "SET", "maxmemory", "1")
        own = {FIRST: OLD, SECOND: OLD}
        assert registry.exchange_generations(own, soon()) == {FIRST: YOUNG}
        with pytest.raises(ClusterDownError) as caught:
            registry.announce(RECORD, soon())
        assert caught.value.failure is Failure.OUT_OF_MEMORY
        assert registry.nodes(soon()) == []
        store.close()


def test_a_server_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey", 64 << 20) as valkey:
        store = ClusterStore(ClusterSettings(parse_url(valkey.url)))
        registry = NodeRegistry(store, key_prefix="t")
        registry.announce(RECORD, soon())
    for call in (
        lambda: registry.announce(RECORD, soon(1)),
        lambda: registry.withdraw("node-1", soon(1)),
        lambda: registry.nodes(soon(1)),
        lambda: registry.exchange_generations({FIRST: OLD}, soon(1)),
        lambda: registry.nodes(time.monotonic()),
    ):
        with pytest.raises(ClusterDownError):
            call()
    store.close()

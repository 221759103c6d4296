"""What one node stores, another finds, fetches and verifies."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier import BlockStatus, NamespaceSpec
from kvtier.client.namespace import Place
from kvtier.core.block import Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.tcp_proxy import TcpProxy
from kvtier.tiers.cluster.url import Transport
from tests.cluster.agents import ACTIVE, Outcome, load, peer, peers, present, store, wait_for_all
from tests.faults.blocks import KIB, MIB, hashes_of
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.cluster

_SOON_SECONDS = 5.0


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX, maxmemory_bytes=512 * MIB) as server:
        yield server


@pytest.mark.parametrize(
    ("block_bytes", "count"), [(4 * KIB, 1500), (MIB, 24), (2 * MIB, 8), (5 * MIB + 4 * KIB, 5)]
)
def test_a_block_stored_on_one_node_is_loaded_on_another(
    server: RedisServer, block_bytes: int, count: int
) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(block_bytes,))
    hashes = hashes_of("shared", count)
    with peers(server.url) as (a, b):
        store(a.client.namespace(spec), hashes)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, _SOON_SECONDS)
        assert there.lookup(hashes).runs == ((Tier.CLUSTER, count),)
        assert load(there, hashes) == Outcome(right=count)
        assert there.lookup(hashes).runs == ((Tier.HOST, count),)
        assert b.cluster.promoted_count == count
        # A load is several calls: what comes between two of them is HOST's when it is asked for,
        # and what comes behind a gap is asked for twice.
        assert 0 < b.cluster.hit_count <= count
        assert b.cluster.hit_count + b.tier(Tier.HOST).hit_count >= count
        assert (a.cluster.demoted_count, b.cluster.demoted_count) == (count, 0)


def test_a_node_does_not_write_what_the_cluster_has(server: RedisServer) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(64 * KIB,))
    hashes = hashes_of("shared", 64)
    with peers(server.url) as (a, b):
        store(a.client.namespace(spec), hashes)
        a.flush()
        writes = server.calls_of("set")
        store(b.client.namespace(spec), hashes)
        b.flush()
        assert server.calls_of("set") == writes
        assert b.cluster.demoted_count == 0


def test_groups_and_shards_are_kept_apart(server: RedisServer) -> None:
    spec = NamespaceSpec(name="hybrid", block_bytes=(64 * KIB, 3 * MIB, 64 * KIB), shards=2)
    hashes = hashes_of("shared", 8)
    places = [Place(group, shard) for group in range(3) for shard in range(2)]
    with peers(server.url, tiers__host__capacity="128MiB") as (a, b):
        for place in places[:-1]:
            store(a.client.namespace(spec), hashes, place)
        a.flush()
        there = b.client.namespace(spec)
        for place in places[:-1]:
            wait_for_all(there, hashes, _SOON_SECONDS, place)
            assert load(there, hashes, place) == Outcome(right=8)
        assert present(there, hashes, places[-1]) == 0
        assert there.lookup(hashes, place=places[0], shards=[0, 1]).matched == 8
        assert there.lookup(hashes, place=places[4], shards=[0, 1]).matched == 0


def test_coded_blocks_arrive_as_they_were(server: RedisServer) -> None:
    spec = NamespaceSpec(name="coded", block_bytes=(5 * MIB,))
    hashes = hashes_of("shared", 4)
    # The high byte of every pair repeats itself; the low one is noise.
    data = np.random.default_rng(1).integers(0, 256, (4, 5 * MIB), np.uint8)
    data[:, 1::2] = 63
    with peers(server.url, tiers__cluster__codec="planes_lz4") as (a, b):
        assert set(a.client.namespace(spec).store(hashes, data)) == {BlockStatus.OK}
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, _SOON_SECONDS)
        out = np.zeros_like(data)
        assert set(there.load_into(hashes, out)) == {BlockStatus.OK}
        assert np.array_equal(out, data)
        names = server.call("KEYS", "kvtier:1:{*")
        assert sum(server.call("STRLEN", name) for name in names) < 0.6 * data.nbytes


def test_a_node_with_another_codec_reads_them_all_the_same(server: RedisServer) -> None:
    spec = NamespaceSpec(name="coded", block_bytes=(64 * KIB,))
    hashes = hashes_of("shared", 16)
    with (
        peer(server.url, tiers__cluster__codec="planes_lz4") as a,
        peer(server.url) as b,
    ):
        data = np.full((16, 64 * KIB), 7, np.uint8)
        a.client.namespace(spec).store(hashes, data)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, _SOON_SECONDS)
        out = np.zeros_like(data)
        assert set(there.load_into(hashes, out)) == {BlockStatus.OK}
        assert np.array_equal(out, data)


def test_half_a_block_is_never_taken_for_one() -> None:
    """A reader looks all the time while the parts of large blocks are written, one by one."""
    spec = NamespaceSpec(name="large", block_bytes=(5 * MIB,))
    hashes = hashes_of("large", 6)
    with (
        RedisServer(maxmemory_bytes=512 * MIB) as server,
        TcpProxy(server.port) as proxy,
        peer(proxy.url, tiers__host__capacity="128MiB") as a,
        peer(server.url, tiers__host__capacity="128MiB", tiers__cluster__miss_seconds=0) as b,
    ):
        there = b.client.namespace(spec)
        wait_until(lambda: a.cluster.state == ACTIVE, _SOON_SECONDS)
        proxy.delay(0.02)
        store(a.client.namespace(spec), hashes)
        for block_hash in hashes:
            wait_for_all(there, [block_hash], 2 * _SOON_SECONDS)
            assert load(there, [block_hash]) == Outcome(right=1)
        assert b.cluster.corrupt_count == 0


def test_blocks_end_with_their_time(server: RedisServer) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(64 * KIB,))
    hashes = hashes_of("shared", 8)
    settings: dict[str, Any] = {"tiers__cluster__ttl": 2, "tiers__cluster__hit_seconds": 0.2}
    with peers(server.url, **settings) as (a, b):
        store(a.client.namespace(spec), hashes)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, 1.5)
        # A lookup that takes too long would not find them either.
        wait_until(lambda: not server.call("KEYS", "kvtier:1:{*"), _SOON_SECONDS)
        wait_until(lambda: present(there, hashes) == 0, _SOON_SECONDS)
        assert load(there, hashes) == Outcome(absent=8)


# Sealing keys.


def _key_file(path: Path, keys: Mapping[int, str], current: int) -> Path:
    lines = [f"{key_id} {key}{' current' * (key_id == current)}" for key_id, key in keys.items()]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


def test_keys_are_rotated_without_losing_blocks(server: RedisServer, tmp_path: Path) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(64 * KIB,))
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    first = _key_file(tmp_path / "first", {1: old}, 1)
    both = _key_file(tmp_path / "both", {1: old, 2: new}, 2)
    last = _key_file(tmp_path / "last", {2: new}, 2)
    before, after = hashes_of("before", 8), hashes_of("after", 8)
    with (
        peer(server.url, tiers__cluster__keys_file=first) as a,
        peer(server.url, tiers__cluster__keys_file=both) as b,
        peer(server.url, tiers__cluster__keys_file=last) as c,
    ):
        store(a.client.namespace(spec), before)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, before, _SOON_SECONDS)
        assert load(there, before) == Outcome(right=8)
        store(there, after)
        b.flush()
        further = c.client.namespace(spec)
        wait_for_all(further, after, _SOON_SECONDS)
        assert load(further, after) == Outcome(right=8)
        assert (b.cluster.corrupt_count, c.cluster.corrupt_count) == (0, 0)
        # The old key has gone from this node.
        assert load(further, before) == Outcome(absent=8)
        assert c.cluster.corrupt_count == 8


@pytest.mark.parametrize("has_key", [True, False])
def test_a_node_with_a_wrong_key_or_none_misses_and_counts(
    server: RedisServer, tmp_path: Path, has_key: bool
) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(64 * KIB,))
    hashes = hashes_of("shared", 8)
    right = _key_file(tmp_path / "right", {1: secrets.token_hex(32)}, 1)
    wrong = _key_file(tmp_path / "wrong", {1: secrets.token_hex(32)}, 1)
    other: dict[str, Any] = {"tiers__cluster__keys_file": wrong} if has_key else {}
    with (
        peer(server.url, tiers__cluster__keys_file=right) as a,
        peer(server.url, **other) as b,
    ):
        store(a.client.namespace(spec), hashes)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, _SOON_SECONDS)
        assert load(there, hashes) == Outcome(absent=8)
        assert b.cluster.corrupt_count == 8
        assert b.cluster.promoted_count == 0


def test_a_node_without_a_key_is_not_believed(server: RedisServer, tmp_path: Path) -> None:
    spec = NamespaceSpec(name="model", block_bytes=(64 * KIB,))
    hashes = hashes_of("shared", 8)
    key = _key_file(tmp_path / "key", {1: secrets.token_hex(32)}, 1)
    with (
        peer(server.url) as a,
        peer(server.url, tiers__cluster__keys_file=key) as b,
    ):
        store(a.client.namespace(spec), hashes)
        a.flush()
        there = b.client.namespace(spec)
        wait_for_all(there, hashes, _SOON_SECONDS)
        assert load(there, hashes) == Outcome(absent=8)
        assert b.cluster.corrupt_count == 8

"""Nodes know each other: who is there, what they have, and when they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from kvtier import NamespaceSpec
from kvtier.core.block import Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from kvtier.v1 import cache_admin_pb2 as pb
from tests.cluster.agents import Peer, peer, store
from tests.faults.blocks import KIB, hashes_of
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.cluster

_HEARTBEAT_SECONDS = 0.5
#: Three heartbeats, and a moment.
_GONE_SECONDS = 3 * _HEARTBEAT_SECONDS + 2.0
_SOON_SECONDS = 5.0


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


def _node(server: RedisServer, name: str) -> AbstractContextManager[Peer]:
    return peer(
        server.url, tiers__cluster__heartbeat=_HEARTBEAT_SECONDS, tiers__cluster__node_name=name
    )


def _names(peer: Peer) -> list[str]:
    return [each.name for each in peer.admin.nodes()]


def test_nodes_say_who_they_are_and_what_they_have(server: RedisServer) -> None:
    spec = NamespaceSpec(name="model", tenant="team", block_bytes=(64 * KIB,))
    with _node(server, "one") as a, _node(server, "two") as b:
        store(a.client.namespace(spec), hashes_of("some", 16))

        def complete() -> list[pb.Node]:
            return [each for each in b.admin.nodes() if each.name == "one" and each.namespaces]

        [node] = wait_until(complete, _SOON_SECONDS)
        assert node.address == a.agent.address
        assert node.version == a.admin.get_stats().version
        assert [(each.tenant, each.name) for each in node.namespaces] == [("team", "model")]
        [host] = node.tiers
        assert int(host.tier) == Tier.HOST
        wait_until(
            lambda: (
                {each.name: each.tiers[0].block_count for each in b.admin.nodes()}
                == {"one": 16, "two": 0}
            ),
            _SOON_SECONDS,
        )


def test_a_node_that_stops_is_gone_at_once(server: RedisServer) -> None:
    with _node(server, "one") as a:
        with _node(server, "two"):
            wait_until(lambda: _names(a) == ["one", "two"], _SOON_SECONDS)
        assert _names(a) == ["one"]


def test_a_node_that_dies_is_gone_after_three_heartbeats(server: RedisServer) -> None:
    with _node(server, "one") as a, _node(server, "two") as b:
        wait_until(lambda: _names(a) == ["one", "two"], _SOON_SECONDS)
        b.agent.kill()
        wait_until(lambda: _names(a) == ["one"], _GONE_SECONDS)


def test_nodes_are_back_after_a_server_lost_everything(server: RedisServer) -> None:
    with _node(server, "one") as a, _node(server, "two") as b:
        wait_until(lambda: _names(a) == ["one", "two"], _SOON_SECONDS)
        server.call("FLUSHALL")
        wait_until(lambda: _names(b) == ["one", "two"], _SOON_SECONDS)

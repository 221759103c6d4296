"""`kvtier cluster`, against an admin socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvtier.cli.cluster import row, versions
from kvtier.cli.exit import ExitCode
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.errors import NotFoundError
from kvtier.tiers.cluster.nodes import NodeNamespace, NodeRecord, NodeTier
from kvtier.v1.cache_admin_pb2 import Node
from tests.unit.cli.command import kvtier
from tests.unit.cli.scripted_agent import ScriptedAgent

DIGEST, GENERATION = bytes(range(32)), bytes(range(16))

#: 7 is the epoch of the scripted agent.
OWN = NodeRecord(
    node_id="node-a-0007",
    name="node-a",
    epoch=7,
    version="1.2",
    pid=99,
    address="10.0.0.1",
    started_at=1_000_000.25,
    interval_seconds=2.5,
    namespaces=(NodeNamespace("default", "m", DIGEST, GENERATION),),
    tiers=(NodeTier(Tier.HOST, 2**30, 3 * 2**28, 5), NodeTier(Tier.DISK, 2**40, 2**30, 6)),
    seen_at=1_000_100.5,
)
OTHER = replace(OWN, node_id="node-b-0008", name="node-b", epoch=8, namespaces=(), tiers=())


@pytest.fixture(scope="module", autouse=True)
def _grpc_for_asyncio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps open what gRPC opens for the first server of a process and closes after the last."""
    with ScriptedAgent(tmp_path_factory.mktemp("agent")):
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ScriptedAgent]:
    with ScriptedAgent(tmp_path) as running:
        yield running


def test_nodes_are_as_they_announced_themselves(agent: ScriptedAgent) -> None:
    agent.upkeep.known_nodes = [OWN, OTHER]
    with AdminClient(agent.address) as client:
        own, other = client.nodes()
    assert (own.node_id, own.name, own.address, own.version, own.epoch, own.pid) == (
        *("node-a-0007", "node-a", "10.0.0.1"),
        *("1.2", 7, 99),
    )
    assert (own.is_self, other.is_self) == (True, False)
    assert own.start_time.ToNanoseconds() == 1_000_000_250_000_000
    assert own.last_seen_time.ToNanoseconds() == 1_000_100_500_000_000
    assert own.heartbeat_interval.ToMilliseconds() == 2500
    [namespace] = own.namespaces
    assert (namespace.tenant, namespace.name) == ("default", "m")
    assert (namespace.layout_digest, namespace.generation_id) == (DIGEST, GENERATION)
    tiers = [
        NodeTier(Tier(each.tier), each.capacity_bytes, each.used_bytes, each.block_count)
        for each in own.tiers
    ]
    assert tuple(tiers) == OWN.tiers
    assert agent.upkeep.asked == [("nodes",)]


def test_many_nodes_come_in_pages(agent: ScriptedAgent) -> None:
    names = [f"node-{number}" for number in range(250)]
    agent.upkeep.known_nodes = [replace(OTHER, node_id=name) for name in names]
    with AdminClient(agent.address) as client:
        assert [each.node_id for each in client.nodes()] == names
    assert agent.upkeep.asked == [("nodes",)] * 3


def test_a_table_has_a_line_for_each_node(agent: ScriptedAgent) -> None:
    now = datetime.fromtimestamp(1_000_103.75, UTC)
    agent.upkeep.known_nodes = [OWN, OTHER]
    with AdminClient(agent.address) as client:
        own, other = (row(each, now) for each in client.nodes())
    assert own == (
        *("node-a-0007", "node-a *", "3 s ago", "1"),
        *("1.00 GiB, 75.0 %", "1.00 TiB, 0.1 %"),
    )
    assert other == ("node-b-0008", "node-b", "3 s ago", "0", "-", "-")


def test_nodes_that_run_different_versions_are_named() -> None:
    nodes = [Node(name="a", version="1.2"), Node(name="b", version="1.2")]
    assert list(versions(nodes)) == ["kvtier 1.2: all"]
    nodes.append(Node(name="c", version="1.3"))
    assert list(versions(nodes)) == ["kvtier 1.2: a, b", "kvtier 1.3: c"]


def test_nodes_are_shown(agent: ScriptedAgent) -> None:
    agent.upkeep.known_nodes = [OWN]
    done = kvtier("cluster", "nodes", "--address", agent.address)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["node", "name", "seen", "namespaces", "HOST", "DISK"] in lines
    assert any(line[:3] == ["node-a-0007", "node-a", "*"] for line in lines)


def test_nodes_are_shown_as_json(agent: ScriptedAgent) -> None:
    agent.upkeep.known_nodes = [OWN, OTHER]
    done = kvtier("cluster", "nodes", "--json", "--address", agent.address)
    own, other = json.loads(done.stdout)["nodes"]
    assert own["namespaces"][0]["generation_id"] == GENERATION.hex()
    assert own["tiers"][1]["tier"] == "TIER_DISK"
    assert (own["is_self"], other["is_self"], other["tiers"]) == (True, False, [])
    assert own["last_seen_time"] == "1970-01-12T13:48:20.500Z"


def test_a_cluster_of_which_nothing_is_known_yet(agent: ScriptedAgent) -> None:
    done = kvtier("cluster", "nodes", "--address", agent.address)
    assert done.stdout == "no nodes: this agent has not announced itself yet\n"


def test_an_agent_without_a_cluster_says_so(agent: ScriptedAgent) -> None:
    agent.upkeep.error = NotFoundError("this agent has no CLUSTER tier: set tiers.cluster.url")
    done = kvtier("cluster", "nodes", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: this agent has no CLUSTER tier: set tiers.cluster.url\n"


def test_without_an_agent_nodes_are_not_known(tmp_path: Path) -> None:
    done = kvtier("cluster", "nodes", "--address", f"unix:{tmp_path}/admin.sock")
    assert done.returncode == ExitCode.UNREACHABLE
    assert "start one with `kvtier agent`" in done.stderr


def test_help_has_an_example() -> None:
    assert "Example: kvtier cluster nodes" in kvtier("cluster", "nodes", "--help").stdout
    assert "Usage: kvtier cluster" in kvtier("cluster", "--help").stdout

"""An agent whose HOST chooses its capacity."""

from __future__ import annotations

import json

from kvtier import memory
from kvtier.testing import AgentProcess
from tests.faults.waiting import wait_until
from tests.unit.cli.command import kvtier

MIB = 1 << 20


def host_of(agent: AgentProcess) -> dict[str, object]:
    done = kvtier("stats", "--json", "--address", agent.admin_address)
    assert done.returncode == 0, done.stderr
    host: dict[str, object] = json.loads(done.stdout)["tiers"][0]
    return host


def test_it_begins_with_its_share_and_ends_where_somebody_sets_it() -> None:
    settings = {"tiers.host.capacity": "auto", "tiers.host.auto.share": 0.01}
    with AgentProcess(settings=settings) as agent:
        host = host_of(agent)
        most = max(memory.total_bytes() // 100, 64 * MIB) // MIB * MIB
        assert host["capacity_bytes"] == host["auto_most_bytes"] == most
        assert host["auto_least_bytes"] == 64 * MIB
        shown = kvtier("stats", "--address", agent.admin_address).stdout
        assert "HOST chooses its capacity, 64.0 MiB to" in shown
        done = kvtier(
            "tier", "set", "host.capacity=80MiB", "--yes", "--address", agent.admin_address
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: "it stays" in str(host_of(agent)["auto_reason"]), 30.0)
        assert host_of(agent)["capacity_bytes"] == 80 * MIB

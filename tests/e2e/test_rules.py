"""Pins, quotas and time to live on an agent that runs, as an operator sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kvtier import BlockStatus, Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from tests.crash.agents import disk_agent, restart
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until
from tests.unit.cli.command import kvtier

MIB = 1 << 20
BLOCK = 64 << 10
RULES = (
    "{short/*: {ttl: 2.0}, a/*: {host: {limit: 25%}, disk: {limit: 16MiB}}, "
    "b/*: {host: {guaranteed: 50%}}}"
)


def spec(tenant: str) -> NamespaceSpec:
    return NamespaceSpec(tenant=tenant, name="m", block_bytes=(BLOCK,))


def fill(client: Client, tenant: str, name: str, count: int) -> list[int]:
    hashes = hashes_of(f"{tenant} {name}", count)
    return client.namespace(spec(tenant)).store(
        hashes, np.zeros((count, BLOCK), np.uint8), breakpoints=[0, count - 1]
    )


def test_rules_of_the_configuration_hold(tmp_path: Path) -> None:
    with (
        disk_agent(tmp_path / "agent", host="16MiB", disk="64MiB", namespaces=RULES) as agent,
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        short, hashes = client.namespace(spec("short")), hashes_of("short x", 16)
        assert fill(client, "short", "x", 16) == [BlockStatus.OK] * 16
        admin.flush(Tier.DISK)
        for number in range(6):
            fill(client, "b", f"{number}", 32)
            fill(client, "a", f"{number}", 32)
        infos = {each.spec.tenant: each for each in admin.list_namespaces()}
        assert infos["a"].limit_bytes[Tier.HOST - 1] == 4 * MIB
        assert 0 < infos["a"].occupied_bytes[Tier.HOST - 1] <= 4 * MIB
        assert infos["a"].occupied_bytes[Tier.DISK - 1] <= 16 * MIB
        assert infos["b"].occupied_bytes[Tier.HOST - 1] >= 8 * MIB
        shown = kvtier("namespaces", "--address", agent.admin_address).stdout
        assert "rule b/*: HOST" in shown
        assert "8.00 MiB guaranteed" in shown
        assert "rule short/*: " in shown
        assert "blocks live 2 s" in shown
        wait_until(lambda: short.lookup(hashes).matched == 0, 10.0)
        wait_until(lambda: admin.get_stats("short/m").tiers[0].block_count == 0, 10.0)
        wait_until(lambda: sum(each.expired_count for each in admin.get_stats().tiers) >= 16, 10.0)
        agent.stop()
        restart(agent)
        with Client(agent.address, timeout_seconds=10.0) as again:
            assert again.namespace(spec("short")).lookup(hashes).matched == 0


def test_pins_hold_under_pressure_and_are_shown(tmp_path: Path) -> None:
    with (
        disk_agent(tmp_path / "agent", host="16MiB", disk="64MiB") as agent,
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        at = ("--address", agent.admin_address)
        hashes = [each.hex() for each in hashes_of("a kept", 16)]
        fill(client, "a", "kept", 16)
        made = kvtier("pin", "a/m", *hashes, "--ttl", "1h", "--reason", "a test", *at)
        assert "16 of 16 blocks" in made.stdout, made
        [pin] = json.loads(kvtier("pins", "--namespace", "a/m", "--json", *at).stdout)["pins"]
        assert (pin["block_count"], pin["reason"]) == (16, "a test")
        for number in range(12):
            fill(client, "a", f"{number}", 64)
            admin.flush()  # what is being written is not evicted
        found = client.namespace(spec("a")).lookup(hashes_of("a kept", 16))
        assert found.runs == ((Tier.HOST, 16),)
        host = admin.get_stats().tiers[0]
        assert host.pinned_bytes == 16 * BLOCK
        assert host.evicted_count > 0
        too_much = [each.hex() for each in hashes_of("a 11", 64)]
        refused = kvtier("pin", "a/m", *too_much, "--ttl", "1h", *at)
        assert refused.returncode == 1
        assert "pins.max_namespace_share" in refused.stderr
        left = kvtier("evict", "a/m", "--yes", *at).stdout
        assert "blocks left, being pinned" in left
        assert client.namespace(spec("a")).lookup(hashes_of("a kept", 16)).matched == 16
        assert kvtier("unpin", pin["pin_id"], *at).returncode == 0
        kvtier("evict", "a/m", "--yes", *at)
        assert client.namespace(spec("a")).lookup(hashes_of("a kept", 16)).matched == 0

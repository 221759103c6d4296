"""/metrics, /healthz and /readyz of a real agent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier import Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing import AgentProcess
from tests.crash.agents import disk_agent, flush, read, store
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until
from tests.metrics.scraping import get, metrics_target, scrape
from tests.unit.cli.command import kvtier

SPEC = NamespaceSpec(name="m", block_bytes=(64 << 10,), block_tokens=16)
HASHES = hashes_of("s", 20)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    directory = tmp_path_factory.mktemp("metrics")
    with disk_agent(
        directory / "agent", host="16MiB", disk="64MiB", metrics__address="127.0.0.1:0"
    ) as running:
        yield running


def test_what_is_scraped_is_what_was_done(agent: AgentProcess) -> None:
    target = metrics_target(agent)
    with (
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        keys = store(client, SPEC, HASHES)
        flush(admin)
        admin.evict_blocks(SPEC.label, tiers=[Tier.HOST])
        namespace = client.namespace(SPEC)
        assert namespace.lookup(HASHES, compute_seconds_per_block=0.5).matched == 20
        assert len(read(client, [SPEC], keys).right) == 20
        assert len(read(client, [SPEC], keys[:5]).right) == 5
        stats = admin.get_stats()
        found = scrape(target)

    def value(name: str, *labels: str) -> float:
        return found[f"kvtier_{name}"][frozenset(labels)]

    disk, host = ("disk", "default/m"), ("host", "default/m")
    assert value("lookup_tokens_total", *disk, "hit") == 20 * 16
    assert value("lookup_tokens_total", *host, "miss") == 20 * 16
    assert value("lookups_total", *disk, "hit") == 1
    assert (value("hit_blocks_total", *disk), value("hit_blocks_total", *host)) == (20, 5)
    assert value("loaded_bytes_total", *disk) == 20 * SPEC.block_bytes[0]
    assert value("promote_seconds_count", *disk) == 20
    assert value("demote_seconds_count", *disk) == value("stored_blocks_total", *disk) == 20
    assert value("store_seconds_count", "default/m") == 1
    assert value("load_seconds_count", "default/m") >= 2
    assert value("evicted_blocks_total", *host, "removed") == 20
    assert value("calls_total", "LookupPrefix", "OK") == 1
    assert value("compute_seconds_saved_total", "default/m") == 12.5
    assert stats.compute_seconds_saved == 12.5
    assert value("in_flight_bytes", "disk", "promote") == 0
    assert value("in_flight_bytes", "disk", "demote") == 0
    assert value("allocated_bytes", "disk") == stats.tiers[1].allocated_bytes
    assert value("memory_available_bytes") > 0
    assert found["process_resident_memory_bytes"][frozenset()] > 1 << 20


def test_a_drained_agent_is_alive_and_not_ready(agent: AgentProcess) -> None:
    target = metrics_target(agent)
    assert get(target, "/readyz")[::2] == (200, "ready\n")
    assert scrape(target)["kvtier_ready"] == {frozenset(): 1}
    assert kvtier("drain", "--address", agent.admin_address).returncode == 0
    try:
        assert get(target, "/readyz")[::2] == (
            503,
            "the agent is draining: it takes no new work\n",
        )
        assert get(target, "/healthz")[::2] == (200, "ok\n")
        assert scrape(target)["kvtier_ready"] == {frozenset(): 0}
    finally:
        kvtier("resume", "--address", agent.admin_address)
    assert get(target, "/readyz")[0] == 200


def test_a_scraper_gets_the_format_that_it_asks_for(agent: AgentProcess) -> None:
    target = metrics_target(agent)
    assert get(target, "/metrics")[1] == "text/plain; version=0.0.4; charset=utf-8"
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    status, content_type, body = get(target, "/metrics", accept)
    assert status == 200
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith("# EOF\n")


def test_a_port_in_use_does_not_stop_the_cache_and_is_taken_when_it_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with AgentProcess(settings={"metrics.address": address}) as agent:
            wait_until(lambda: "metrics.address" in agent.log, 10.0)
            assert f"{address} cannot be listened on: Address already in use" in " ".join(
                agent.log.split()
            )
            with Client(agent.address, timeout_seconds=10.0) as client:
                assert len(store(client, SPEC, HASHES)) == 20
            taken.close()
            assert metrics_target(agent, 30.0) == address
            assert scrape(address)["kvtier_stored_blocks_total"]
            assert agent.log.count("cannot be listened on") == 1


def test_without_an_address_nothing_listens(tmp_path: Path) -> None:
    with AgentProcess(settings={"metrics.address": "null"}) as agent:
        listening = Path(f"/proc/{agent.pid}/net/tcp").read_text().splitlines()[1:]
        inodes = {line.split()[9] for line in listening if line.split()[3] == "0A"}
        mine = {
            each.readlink().name
            for each in Path(f"/proc/{agent.pid}/fd").iterdir()
            if each.is_symlink()
        }
        assert not {f"socket:[{each}]" for each in inodes} & mine
        assert "metrics" not in agent.log

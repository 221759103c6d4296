"""A real Prometheus scrapes an agent under load: dashboard, alerts and catalogue have data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from kvtier import Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.errors import NotFoundError
from kvtier.memory import pressure_seconds
from kvtier.metrics.catalogue import METRICS, Kind
from kvtier.testing import AgentProcess
from kvtier.testing.redis_servers import RedisServer
from tests.access.agents import Callers, make_certificates, remote_agent
from tests.crash.agents import Key, disk_settings, read, store
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until
from tests.metrics.prometheus_server import PrometheusServer, needs_prometheus
from tests.metrics.scraping import metrics_target
from tests.metrics.test_alerts import RULES
from tests.metrics.test_dashboard import expressions

_SELECTOR = re.compile(r"\b(?:kvtier|process|up)[a-z_]*(?:\{[^}]*\})?")
_SECONDS = 60.0
SPECS = [
    NamespaceSpec(name=name, block_bytes=(64 << 10,), block_tokens=16) for name in ("one", "two")
]


@dataclass(frozen=True)
class Scene:
    """An agent that Prometheus scrapes."""

    agent: AgentProcess
    prometheus: PrometheusServer


@contextmanager
def scene_in(directory: Path) -> Iterator[Scene]:
    with RedisServer(maxmemory_bytes=64 << 20) as server:
        settings = disk_settings(directory / "agent", host="8MiB", disk="64MiB")
        settings |= {
            "metrics.address": "127.0.0.1:0",
            "tiers.cluster.url": server.url,
            "tiers.cluster.timeout": 10.0,
        }
        certificates = directory / "certificates"
        make_certificates(certificates, "someone=DNS:someone.example")
        with remote_agent(directory, Callers(), certificates, settings) as remote:
            agent = remote.process
            target = metrics_target(agent)
            with PrometheusServer(directory, target, RULES) as prometheus:
                wait_until(lambda: prometheus.query('up{job="kvtier"} == 1'), _SECONDS)
                yield Scene(agent, prometheus)


def work(scene: Scene, round_number: int) -> None:
    """Every kind of work: blocks that HOST evicts, and that come back from both slower tiers;
    stores that are refused, calls that fail."""
    with (
        Client(scene.agent.address, timeout_seconds=10.0) as client,
        AdminClient(scene.agent.admin_address) as admin,
    ):
        for spec in SPECS:
            hashes = hashes_of(f"{spec.name} {round_number}", 40)
            keys = store(client, spec, hashes)
            store(client, spec, hashes_of(f"{spec.name} {round_number} long", 150))
            namespace = client.namespace(spec)
            namespace.lookup(hashes, compute_seconds_per_block=0.01)
            for tier in (Tier.DISK, Tier.CLUSTER):
                admin.flush(tier)
            admin.evict_blocks(spec.label, tiers=[Tier.HOST])
            namespace.lookup(hashes[:8], prefetch=True)
            wait_until(partial(has_all, client, spec, keys[:16]), _SECONDS)
            admin.evict_blocks(spec.label, tiers=[Tier.HOST, Tier.DISK])
            wait_until(partial(has_all, client, spec, keys[:16]), _SECONDS)
        with pytest.raises(NotFoundError):
            admin.evict_blocks("default/nowhere")


def has_all(client: Client, spec: NamespaceSpec, keys: list[Key]) -> bool:
    return len(read(client, [spec], keys).right) == len(keys)


def without_data(prometheus: PrometheusServer, wanted: dict[str, str]) -> set[str]:
    """Where there is nothing, or nothing but 0 / 0."""
    return {
        name
        for name, expression in wanted.items()
        if all(math.isnan(float(each["value"][1])) for each in prometheus.query(expression))
    }


def check_that_dashboard_and_metrics_have_data(scene: Scene) -> None:
    series = {
        name: f"{name}_bucket" if metric.kind is Kind.HISTOGRAM else name
        for name, metric in METRICS.items()
    }
    wanted = expressions() | series
    missing = {name for name in wanted if pressure_seconds() or "ressure" not in name}
    rounds = iter(range(100))

    def is_all_there() -> bool:
        work(scene, next(rounds))
        missing.intersection_update(without_data(scene.prometheus, wanted))
        return not missing

    with suppress(AssertionError):
        # A pause, or scrapes would wait behind these queries and time out.
        wait_until(is_all_there, _SECONDS, 1.0)
    assert not missing


def check_that_alerts_are_evaluated_and_none_fires(scene: Scene) -> None:
    wait_until(lambda: all(rule["health"] == "ok" for rule in scene.prometheus.rules()), _SECONDS)
    rules = scene.prometheus.rules()
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    selectors = {each for rule in rules for each in _SELECTOR.findall(rule["query"])}
    assert len(selectors) > len(rules)
    known = {each: each for each in selectors if pressure_seconds() or "pressure" not in each}
    wait_until(lambda: not without_data(scene.prometheus, known), _SECONDS)


def check_that_an_agent_that_hangs_is_noticed(scene: Scene) -> None:
    scene.agent.pause()
    try:
        wait_until(lambda: scene.prometheus.query('up{job="kvtier"} == 0'), _SECONDS)
    finally:
        scene.agent.resume()


@needs_prometheus
@pytest.mark.alone
def test_an_agent_at_work_has_data_for_dashboard_and_alerts(tmp_path: Path) -> None:
    with scene_in(tmp_path) as scene:  # one for all: it takes some seconds to start
        check_that_dashboard_and_metrics_have_data(scene)
        check_that_alerts_are_evaluated_and_none_fires(scene)
        check_that_an_agent_that_hangs_is_noticed(scene)

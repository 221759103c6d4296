"""The agent's numbers over HTTP, as configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.config.tcp_address import host_and_port
from kvtier.metrics.endpoint import MetricsEndpoint
from kvtier.metrics.sources import Sources

if TYPE_CHECKING:
    from kvtier.daemon.agent import Agent


def metrics_endpoint(agent: Agent) -> MetricsEndpoint | None:
    """Before there are namespaces; None if it is switched off."""
    config = agent.config.metrics
    if config.address is None:
        return None
    sources = Sources(
        version=agent.identity.version,
        host=agent.host,
        mover=agent.mover,
        gpu=agent.gpu,
        disk=agent.disk,
        cluster=agent.cluster,
        namespaces=agent.namespaces,
        leases=agent.leases,
        pins=agent.pins,
        promotion=agent.promotion,
        admission=agent.admission,
        calls=agent.calls,
        listeners=agent.listening,
        memory_reserve_bytes=agent.config.tiers.host.memory_reserve,
        why_not_ready=lambda: _why_not_ready(agent),
    )
    host, port = host_and_port(config.address)
    return MetricsEndpoint(sources, host, port, config.max_namespaces)


def _why_not_ready(agent: Agent) -> str:
    if agent.lifecycle.is_draining:
        return "the agent is draining: it takes no new work"
    if agent.disk and not agent.disk.is_recovered:
        return "the tables of DISK are still being read"
    return ""

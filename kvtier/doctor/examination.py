"""All of it, in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from kvtier.config import AgentConfig, format_size
from kvtier.doctor.accelerators import accelerator_findings, has_accelerator
from kvtier.doctor.clock import clock_findings
from kvtier.doctor.cluster import cluster_findings
from kvtier.doctor.disk import disk_findings
from kvtier.doctor.engines import engine_findings
from kvtier.doctor.finding import Finding, problem, warning
from kvtier.doctor.kernel import kernel_findings
from kvtier.doctor.limits import limit_findings
from kvtier.doctor.sockets import socket_findings
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Stats

_TIERS = {block_pb2.TIER_HOST: "host", block_pb2.TIER_DISK: "disk"}


def examine(
    config: AgentConfig,
    chosen: Set[str],
    stats: Stats | None,
    namespaces: Sequence[NamespaceInfo],
    pid: int | None,
    *,
    is_measured: bool,
) -> list[Finding]:
    """`chosen` are the keys that have not their defaults; the others are those of the
    running agent, if there is one."""
    has_agent = stats is not None
    host = (
        next((each for each in stats.tiers if each.tier == block_pb2.TIER_HOST), None)
        if stats
        else None
    )
    allocated = host.allocated_bytes if host is not None else 0
    parts: list[Callable[[], Iterator[Finding]]] = [
        kernel_findings,
        lambda: limit_findings(config, allocated, has_accelerator(), pid),
        lambda: socket_findings(config),
        lambda: disk_findings(config, has_agent=has_agent, is_measured=is_measured),
        lambda: cluster_findings(config, has_agent=has_agent),
        accelerator_findings,
        lambda: engine_findings(namespaces),
        lambda: clock_findings(config),
        lambda: _differences(config, chosen, stats),
    ]
    return [finding for part in parts for finding in _tried(part)]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: each.verdict.place)


def _tried(part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What cannot be looked at is told, and the others are looked at all the same."""
    try:
        yield from part()
    except OSError as error:
        name = getattr(part, "__name__", "").partition("_")[0]
        yield problem(name or "machine", f"cannot be looked at: {error}", "see who may read that")


def _differences(config: AgentConfig, chosen: Set[str], stats: Stats | None) -> Iterator[Finding]:
    """Of what runs from what is configured; whoever names no configuration has none to compare."""
    for tier in stats.tiers if stats is not None else ():
        name = _TIERS.get(tier.tier)
        if name is None or f"tiers.{name}.capacity" not in chosen:
            continue
        configured = getattr(config.tiers, name).capacity
        if tier.capacity_bytes != configured:
            yield warning(
                "configuration",
                f"tiers.{name}.capacity is {format_size(configured)} here, and the agent "
                f"runs with {format_size(tier.capacity_bytes)}",
                "the agent was started with another configuration, or `kvtier tier set` changed "
                "it: give its --config, or restart it",
            )

"""Redis or Valkey: whether it is reached, what it is, and whether it is set up as a cache."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from kvtier.config import AgentConfig
from kvtier.daemon.cluster import cluster_storage, is_embedded
from kvtier.doctor.finding import Finding, ok, problem, skipped, warning
from kvtier.errors import ConfigError
from kvtier.tiers.cluster.embedded import valkey_binary
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.report import ClusterReport, Concern
from kvtier.tiers.cluster.storage import ClusterStorage

_SLOW_SECONDS = 0.01
_CLOCK_SECONDS = 2.0
_OLDEST = 6
_ATTEMPTS = 3
_SETTINGS = {
    Concern.NO_EVICTION: "CONFIG SET maxmemory-policy allkeys-lru, and in its configuration file",
    Concern.VOLATILE_ONLY: "allkeys-lru, on a server that only kvtier uses",
    Concern.NOT_LRU: "CONFIG SET maxmemory-policy allkeys-lru, and in its configuration file",
    Concern.NO_LIMIT: "maxmemory of three quarters of its machine's memory",
    Concern.IS_REPLICA: "tiers.cluster.url of the master, or of its Sentinels",
    Concern.PERSISTENT: 'appendonly no and save "": it is a cache',
}


def cluster_findings(config: AgentConfig, *, has_agent: bool) -> Iterator[Finding]:
    """Connects, asks, and writes one small key that lives for a minute."""
    if not config.tiers.cluster.url:
        yield skipped("CLUSTER", "tiers.cluster.url is not set: there is no such tier")
        return
    try:
        storage = cluster_storage(config)
        if is_embedded(config) and not has_agent:
            yield ok("CLUSTER", f"embedded: the agent will start {valkey_binary()}")
            storage.close()
            return
    except ConfigError as error:
        yield problem("CLUSTER", str(error), "mend that key of the configuration")
        return
    try:
        yield from _server(storage, config)
    except ClusterDownError as error:
        yield problem(
            storage.label,
            f"not reached: {error.strerror}",
            "start the server, or mend tiers.cluster.url, its password, TLS files or the firewall",
        )
    finally:
        storage.close()


def _server(storage: ClusterStorage, config: AgentConfig) -> Iterator[Finding]:
    subject, store = storage.label, storage.store
    report = store.check(storage.deadline())
    seconds = math.inf
    for _ in range(_ATTEMPTS):  # the best one is the server's, others are this machine's
        began = time.monotonic()
        [clock] = store.ask(b"kvtier:doctor", [(b"TIME",)], storage.deadline())
        seconds = min(seconds, time.monotonic() - began)
    yield _identity(subject, report, seconds)
    for concern in report.concerns:
        make = problem if concern is Concern.IS_REPLICA else warning
        yield make(subject, concern.value, _SETTINGS[concern])
    if isinstance(clock, list):
        ahead = float(clock[0]) - time.time()
        if abs(ahead) > _CLOCK_SECONDS:
            yield warning(
                "clock",
                f"the server's is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}",
                "let both follow NTP: times to live of blocks depend on it",
            )
    try:
        storage.probe()
    except ClusterDownError as error:
        yield problem(
            subject,
            f"takes no writes: {error.strerror}",
            "make room (maxmemory, maxmemory-policy allkeys-lru), or the user's permissions",
        )
    if config.tiers.cluster.keys_file is None:
        yield ok(subject, "no keys_file: whoever can write to the server can forge blocks")


def _identity(subject: str, report: ClusterReport, seconds: float) -> Finding:
    said = (
        f"{report.kind} {report.version}, {report.mode}, {report.servers} server"
        f"{'' if report.servers == 1 else 's'}, {', '.join(report.policies)}, "
        f"answers in {1000 * seconds:.1f} ms"
    )
    major = report.version.partition(".")[0]
    if major.isdecimal() and int(major) < _OLDEST:
        return warning(subject, f"{said}: older than what is tested", "Redis or Valkey from 6 on")
    if seconds > _SLOW_SECONDS:
        return warning(
            subject, f"{said}: slow", "a server in the same network; see what it is busy with"
        )
    return ok(subject, said)

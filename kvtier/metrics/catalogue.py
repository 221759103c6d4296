"""Every metric: its name, what it counts, its labels. docs/metrics.md is made of this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """Counters end with `_total`. A text of one line, for HELP."""

    kind: Kind
    name: str
    labels: tuple[str, ...]
    text: str


_OF_TIER: Final = ("tier",)
_OF_NAMESPACE: Final = ("namespace",)
_OF_BOTH: Final = ("tier", "namespace")
_STATUS: Final = (*_OF_BOTH, "status")
_REASON: Final = (*_OF_BOTH, "reason")


def _counter(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(Kind.COUNTER, f"kvtier_{name}_total", labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(Kind.GAUGE, f"kvtier_{name}", labels, text)


def _histogram(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(Kind.HISTOGRAM, f"kvtier_{name}_seconds", labels, text)


SECTIONS: Final[dict[str, tuple[Metric, ...]]] = {
    "Lookups": (
        _counter(
            "lookups",
            _STATUS,
            "Lookups that asked a tier, by what they found of what they asked it: hit (all), "
            "partial or miss",
        ),
        _counter("lookup_blocks", _STATUS, "Blocks that lookups asked a tier for: hit or miss"),
        _counter(
            "lookup_tokens",
            _STATUS,
            "Tokens whose blocks lookups asked a tier for, each counted once: hit or miss",
        ),
        _histogram("lookup", _OF_NAMESPACE, "From a lookup's arrival to its answer"),
    ),
    "Loads": (
        _counter("hit_blocks", _OF_BOTH, "Blocks that workers loaded, by the tier that had them"),
        _counter(
            "hit_tokens",
            _OF_BOTH,
            "Tokens that need not be computed because of these blocks, each counted once",
        ),
        _counter(
            "missed_blocks", _OF_NAMESPACE, "Blocks that were gone when a worker came to load them"
        ),
        _counter("loaded_bytes", _OF_BOTH, "Slots of the blocks that workers loaded, by tier"),
        _counter(
            "compute_seconds_saved",
            _OF_NAMESPACE,
            "Computing that loads made needless, by what workers say it takes them",
        ),
        _histogram("load", _OF_NAMESPACE, "From a load's arrival until its blocks are in HOST"),
    ),
    "Stores": (
        _counter(
            "stored_blocks",
            _OF_BOTH,
            "Blocks committed in HOST by workers, and those that the agent wrote to slower tiers "
            "or copied to devices",
        ),
        _counter("stored_bytes", _OF_BOTH, "Slots of the stored blocks"),
        _counter(
            "refused_blocks", _REASON, "Blocks that a tier did not let in; HOST's are not cached"
        ),
        _counter(
            "mismatched_blocks",
            _OF_NAMESPACE,
            "Blocks refused at their commit: the bytes are not what the worker's digest says",
        ),
        _histogram(
            "store", _OF_NAMESPACE, "From a reservation's arrival to the commit of its last block"
        ),
    ),
    "Movement between tiers": (
        _histogram("promote", _OF_BOTH, "From the decision to bring a block to HOST until it came"),
        _counter("promoted_bytes", _OF_BOTH, "Slots of the blocks that came to HOST from a tier"),
        _histogram(
            "demote", _OF_BOTH, "From the beginning of a block's write to a tier to its end"
        ),
        _counter("unwritten_blocks", _OF_TIER, "Blocks that left HOST before they were written"),
        _gauge(
            "in_flight_bytes",
            ("tier", "direction"),
            "Slots of HOST whose blocks are on their way: promote (from the tier), demote (to it)",
        ),
        _gauge("waiting_bytes", _OF_TIER, "Slots of HOST whose blocks wait to be written"),
        _gauge("queued_calls", _OF_TIER, "Calls that wait for a thread of the tier, or have one"),
        _counter("prefetched_blocks", _OF_NAMESPACE, "Blocks brought to HOST ahead of use"),
        _counter("prefetch_used_blocks", _OF_NAMESPACE, "Those of them that were used"),
        _counter("prefetch_wasted_blocks", _OF_NAMESPACE, "Those that left HOST without any use"),
    ),
    "What tiers hold": (
        _gauge("capacity_bytes", _OF_TIER, "What a tier may occupy; 0: its servers have no limit"),
        _gauge(
            "allocated_bytes",
            _OF_TIER,
            "What it occupies, used or not, as the kernel counts it; of CLUSTER, what servers say",
        ),
        _gauge("used_bytes", _OF_BOTH, "Slots of blocks, reservations and quarantine"),
        _gauge(
            "blocks",
            _OF_BOTH,
            "Blocks in HOST and on DISK, and copies of HOST's on the devices of GPU",
        ),
        _gauge(
            "leased_bytes", _OF_BOTH, "Slots that leases, holds, pins and moves keep from reuse"
        ),
        _gauge("pinned_bytes", _OF_BOTH, "Slots of the blocks that operators keep from eviction"),
        _counter("evicted_blocks", _REASON, "Blocks that left a tier, by the reason"),
    ),
    "Health": (
        _gauge("ready", (), "1 when /readyz says so: all tables are read, and no drain"),
        _gauge("tier_state", ("tier", "state"), "1 for the state that a tier is in, else 0"),
        _counter("device_errors", _OF_TIER, "Calls of devices and servers that failed"),
        _counter("device_read_bytes", _OF_TIER, "Asked of devices and servers"),
        _counter("device_written_bytes", _OF_TIER, "Given to devices and servers"),
        _counter(
            "corrupt_blocks",
            ("tier", "reason"),
            "Blocks that were not what they should be, and were dropped",
        ),
        _gauge(
            "memory_available_bytes",
            (),
            "Memory that can still be allocated: the system's, or what cgroups leave of it",
        ),
        _gauge("memory_reserve_bytes", (), "HOST grows only while more than this is available"),
        _gauge(
            "certificate_expiry_timestamp_seconds",
            (),
            "When listen.tls_cert expires, in Unix seconds; nothing without TLS",
        ),
        _gauge(
            "listen_errors",
            (),
            "Kinds of files of listen that have changed and cannot be used: credentials, "
            "certificates",
        ),
        _counter(
            "memory_pressure_seconds",
            ("kind",),
            "Time in which processes of the agent's cgroup waited for memory: some, or all (full)",
        ),
    ),
    "Workers and calls": (
        _counter("calls", ("method", "status"), "Calls that ended, by their gRPC status"),
        _counter("rejected_calls", (), "Calls refused because too much was in flight"),
        _gauge("sessions", _OF_NAMESPACE, "Sessions that are open"),
        _gauge(
            "open_layouts",
            _OF_NAMESPACE,
            "Layouts with open sessions under one name: more than one share nothing",
        ),
        _gauge("namespaces", (), "Namespaces, each layout for itself"),
        _gauge("leases", ("kind",), "Leases: load, hold, reservation, quarantine"),
        _gauge("lease_bytes", ("kind",), "Slots under them; one counts for each of its leases"),
        _gauge("oldest_lease_seconds", ("kind",), "Time since the oldest one was asked for"),
        _gauge("pins", (), "Pins of operators"),
        _gauge("build_info", ("version",), "Always 1"),
    ),
}

METRICS: Final = {each.name: each for section in SECTIONS.values() for each in section}

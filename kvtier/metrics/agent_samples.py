"""The numbers of the agent as a whole."""

from __future__ import annotations

from collections import Counter

from kvtier import memory
from kvtier.core.lease import Lease, LeaseKind
from kvtier.core.status import Code
from kvtier.metrics.samples import Samples
from kvtier.metrics.sources import Sources
from kvtier.rpc.call_counts import OK


def add_agent(samples: Samples, sources: Sources) -> None:
    add = samples.add
    add("kvtier_build_info", 1, sources.version)
    add("kvtier_ready", not sources.why_not_ready())
    add("kvtier_namespaces", len(sources.namespaces))
    add("kvtier_pins", sum(1 for _ in sources.pins))
    add("kvtier_rejected_calls_total", sources.admission.refused_calls)
    add("kvtier_memory_reserve_bytes", sources.memory_reserve_bytes)
    add("kvtier_listen_errors", len(sources.listeners.errors))
    if sources.listeners.certificate_expires_at is not None:
        add("kvtier_certificate_expiry_timestamp_seconds", sources.listeners.certificate_expires_at)
    for (method, status), count in sources.calls.items():
        add("kvtier_calls_total", count, method, status)
        for each in (OK, Code.INTERNAL.name):  # so that the first one is seen to be one more
            add("kvtier_calls_total", 0, method, each)


def add_leases(samples: Samples, sources: Sources) -> None:
    count: Counter[LeaseKind] = Counter()
    size_bytes: Counter[LeaseKind] = Counter()
    oldest: dict[LeaseKind, Lease] = {}
    for lease in sources.leases:  # the oldest first
        count[lease.kind] += 1
        size_bytes[lease.kind] += lease.size_bytes
        oldest.setdefault(lease.kind, lease)
    now = sources.leases.now()
    for kind in LeaseKind:
        age = now - oldest[kind].begun_at if kind in oldest else 0
        samples.add("kvtier_leases", count[kind], kind.value)
        samples.add("kvtier_lease_bytes", size_bytes[kind], kind.value)
        samples.add("kvtier_oldest_lease_seconds", age, kind.value)


def add_memory(samples: Samples) -> None:
    """Reads files of the kernel; for a thread."""
    samples.add("kvtier_memory_available_bytes", memory.available_bytes())
    for kind, seconds in memory.pressure_seconds().items():
        samples.add("kvtier_memory_pressure_seconds_total", seconds, kind)

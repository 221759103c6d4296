"""The numbers of one namespace."""

from __future__ import annotations

from kvtier.agent.moving.writer import Writer
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.metrics.samples import Samples
from kvtier.tiers.size_class import Counters, SizeClass

_CAUSES = [
    ("refused_blocks" if cause.is_refusal else "evicted_blocks", cause, cause.name.lower())
    for cause in Cause
]


def add_namespace(
    samples: Samples, namespace: Namespace, label: str, disk: Disk | None, cluster: Cluster | None
) -> None:
    """Adds all that is counted for it, under this label; some 0.1 ms."""
    usage, add = namespace.usage, samples.add
    add("kvtier_sessions", namespace.session_count, label)
    add("kvtier_open_layouts", namespace.session_count > 0, label)
    add("kvtier_compute_seconds_saved_total", usage.compute_seconds_saved, label)
    add("kvtier_mismatched_blocks_total", usage.mismatched_blocks, label)
    samples.add_latency("kvtier_lookup_seconds", usage.lookups, label)
    samples.add_latency("kvtier_load_seconds", usage.loads, label)
    samples.add_latency("kvtier_store_seconds", usage.stores, label)
    for tier, size_classes in namespace.places:
        for size_class in dict.fromkeys(size_classes):
            _add_class(samples, size_class, tier.name.lower(), label)
            if tier is Tier.HOST:
                _add_host_class(samples, size_class, label)
    for tier in dict.fromkeys(tier for tier, _ in namespace.places):
        _add_usage(samples, namespace, tier, label)
    writers: dict[Tier, Writer] = {}
    if disk is not None:
        writers[Tier.DISK] = disk.writer
    if cluster is not None:
        writers[Tier.CLUSTER] = cluster.writer
        _add_cluster(samples, namespace, cluster, label)
    for tier, writer in writers.items():
        name = tier.name.lower()
        samples.add_latency("kvtier_promote_seconds", usage.tiers[tier].promotions, name, label)
        for host in namespace.classes_of(Tier.HOST):
            samples.add_latency("kvtier_demote_seconds", writer.writes[host], name, label)


def _add_usage(samples: Samples, namespace: Namespace, tier: Tier, label: str) -> None:
    usage, name, add = namespace.usage.tiers[tier], tier.name.lower(), samples.add
    add("kvtier_lookups_total", usage.full_lookups, name, label, "hit")
    add("kvtier_lookups_total", usage.partial_lookups, name, label, "partial")
    add("kvtier_lookups_total", usage.missed_lookups, name, label, "miss")
    found, tokens = usage.found_blocks, namespace.spec.block_tokens
    missed = usage.looked_up_blocks - found
    add("kvtier_lookup_tokens_total", found * tokens, name, label, "hit")
    add("kvtier_lookup_tokens_total", missed * tokens, name, label, "miss")
    add("kvtier_hit_tokens_total", usage.loaded_blocks * tokens, name, label)


def _add_class(samples: Samples, size_class: SizeClass, tier: str, label: str) -> None:
    counters, slot_bytes, add = size_class.counters, size_class.slot_bytes, samples.add
    _add_counters(samples, counters, slot_bytes, tier, label)
    add("kvtier_stored_blocks_total", counters.stored, tier, label)
    add("kvtier_stored_bytes_total", counters.stored * slot_bytes, tier, label)
    add("kvtier_used_bytes", size_class.used_slots * slot_bytes, tier, label)
    add("kvtier_leased_bytes", size_class.referenced_slots * slot_bytes, tier, label)
    add("kvtier_pinned_bytes", size_class.pinned.size_bytes, tier, label)
    add("kvtier_blocks", len(size_class.residency), tier, label)
    for name, cause, reason in _CAUSES:
        add(f"kvtier_{name}_total", counters.causes[cause], tier, label, reason)


def _add_host_class(samples: Samples, size_class: SizeClass, label: str) -> None:
    unused = size_class.unused
    samples.add("kvtier_missed_blocks_total", size_class.counters.misses, label)
    samples.add("kvtier_prefetched_blocks_total", unused.brought_count, label)
    samples.add("kvtier_prefetch_used_blocks_total", unused.used_count, label)
    samples.add("kvtier_prefetch_wasted_blocks_total", unused.wasted_count, label)


def _add_counters(
    samples: Samples, counters: Counters, slot_bytes: int, tier: str, label: str
) -> None:
    """What a tier without slots counts too."""
    add, missed = samples.add, counters.looked_up - counters.found
    add("kvtier_lookup_blocks_total", counters.found, tier, label, "hit")
    add("kvtier_lookup_blocks_total", missed, tier, label, "miss")
    add("kvtier_hit_blocks_total", counters.hits, tier, label)
    add("kvtier_loaded_bytes_total", counters.hits * slot_bytes, tier, label)
    if tier != "host":
        add("kvtier_promoted_bytes_total", counters.promoted * slot_bytes, tier, label)


def _add_cluster(samples: Samples, namespace: Namespace, cluster: Cluster, label: str) -> None:
    tier = Tier.CLUSTER.name.lower()
    for group, size_class in enumerate(namespace.groups):
        counters = cluster.reader.counters(namespace, group)
        _add_counters(samples, counters, size_class.slot_bytes, tier, label)
    _add_usage(samples, namespace, Tier.CLUSTER, label)
    for host in namespace.classes_of(Tier.HOST):
        written = sum(cluster.writer.writes[host].counts)
        samples.add("kvtier_stored_blocks_total", written, tier, label)
        samples.add("kvtier_stored_bytes_total", written * host.slot_bytes, tier, label)

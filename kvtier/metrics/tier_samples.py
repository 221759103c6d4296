"""The numbers of tiers as a whole."""

from __future__ import annotations

from kvtier.agent.moving.demotion import Demotion
from kvtier.agent.moving.writer import Writer
from kvtier.agent.operating.stats import (
    TierState,
    TierStats,
    cluster_stats,
    disk_stats,
    gpu_stats,
    host_stats,
)
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.agent.tiers.gpu import Gpu
from kvtier.core.block import Tier
from kvtier.metrics.samples import Samples
from kvtier.metrics.sources import Sources
from kvtier.tiers.cluster.sealing import Fault


def add_tiers(samples: Samples, sources: Sources) -> None:
    """What is not counted for namespaces."""
    disk, cluster = sources.disk, sources.cluster
    _add_gpu(samples, sources.gpu)
    _add_tier(samples, host_stats(sources.host, sources.leases, sources.mover, ()))
    if disk is not None:
        _add_tier(samples, disk_stats(disk, ()))
        _add_slower(samples, sources, Tier.DISK, disk.demotion, disk.writer)
        _add_damage(samples, disk)
    if cluster is not None:
        _add_tier(samples, cluster_stats(cluster, ()))
        _add_slower(samples, sources, Tier.CLUSTER, cluster.demotion, cluster.writer)
        _add_faults(samples, cluster)


def _add_gpu(samples: Samples, gpu: Gpu) -> None:
    """All devices together: UNAVAILABLE if every one is, DEGRADED if one is."""
    devices = gpu_stats(gpu, ())
    if not devices:
        return
    states = {each.state for each in devices}
    _add_state(samples, Tier.GPU, states.pop() if len(states) == 1 else TierState.DEGRADED)
    for each in devices:
        _add_sizes(samples, each)
        samples.add("kvtier_device_errors_total", each.error_count, Tier.GPU.name.lower())


def _add_tier(samples: Samples, stats: TierStats) -> None:
    tier, add = stats.tier.name.lower(), samples.add
    _add_state(samples, stats.tier, stats.state)
    _add_sizes(samples, stats)
    if stats.tier is not Tier.HOST:
        add("kvtier_device_errors_total", stats.error_count, tier)
        add("kvtier_device_read_bytes_total", stats.read_bytes, tier)
        add("kvtier_device_written_bytes_total", stats.written_bytes, tier)
        add("kvtier_unwritten_blocks_total", stats.unwritten_count, tier)


def _add_state(samples: Samples, tier: Tier, state: TierState) -> None:
    for each in TierState:
        samples.add("kvtier_tier_state", state is each, tier.name.lower(), each.name.lower())


def _add_sizes(samples: Samples, stats: TierStats) -> None:
    tier, add = stats.tier.name.lower(), samples.add
    add("kvtier_capacity_bytes", stats.capacity_bytes, tier)
    add("kvtier_allocated_bytes", stats.allocated_bytes, tier)
    add("kvtier_queued_calls", stats.queue_depth, tier)


def _add_slower(
    samples: Samples, sources: Sources, tier: Tier, demotion: Demotion, writer: Writer
) -> None:
    name, in_flight_bytes = tier.name.lower(), writer.in_flight_bytes
    promoting_bytes = sources.promotion.in_flight_bytes[tier]
    samples.add("kvtier_in_flight_bytes", promoting_bytes, name, "promote")
    samples.add("kvtier_in_flight_bytes", in_flight_bytes, name, "demote")
    samples.add("kvtier_waiting_bytes", demotion.waiting_bytes - in_flight_bytes, name)


def _add_damage(samples: Samples, disk: Disk) -> None:
    tier = Tier.DISK.name.lower()
    samples.add("kvtier_corrupt_blocks_total", disk.reader.corrupt_count, tier, "damaged")
    samples.add("kvtier_corrupt_blocks_total", disk.reader.unreadable_count, tier, "unreadable")
    samples.add("kvtier_corrupt_blocks_total", disk.damaged_record_count, tier, "record")


def _add_faults(samples: Samples, cluster: Cluster) -> None:
    tier, faults = Tier.CLUSTER.name.lower(), cluster.reader.faults
    for fault in Fault:
        reason = fault.value.replace(" ", "_")
        samples.add("kvtier_corrupt_blocks_total", faults[fault], tier, reason)

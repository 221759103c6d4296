"""What an agent holds and has done, for operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from kvtier.agent.moving.mover import Mover
from kvtier.agent.operating.auto_sizing import AutoSizing
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.device import Device
from kvtier.agent.tiers.disk import Disk
from kvtier.agent.tiers.gpu import Gpu
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.core.lease import LeaseKind, LeaseTable
from kvtier.tiers.health import Health
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

#: A block that leaves for one of these would have stayed in a larger tier.
_CROWDING = (Cause.EVICTED, Cause.TRADED)


class TierState(IntEnum):
    """What a tier does (numbers as in the proto)."""

    ACTIVE = 1
    DEGRADED = 2
    UNAVAILABLE = 3
    RECOVERING = 4


@dataclass
class TierStats:
    """One tier, for some namespaces. Counts are blocks since the agent's start."""

    tier: Tier
    capacity_bytes: int = 0
    allocated_bytes: int = 0
    used_bytes: int = 0
    leased_bytes: int = 0
    block_count: int = 0
    lookup_count: int = 0
    lookup_hit_count: int = 0
    hit_count: int = 0
    miss_count: int = 0
    stored_count: int = 0
    evicted_count: int = 0
    refused_count: int = 0
    queue_depth: int = 0
    quarantined_bytes: int = 0
    state: TierState = TierState.ACTIVE
    reason: str = ""
    corrupt_count: int = 0
    error_count: int = 0
    promoted_count: int = 0
    demoted_count: int = 0
    unwritten_count: int = 0
    pending_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    policy: str = ""
    admission: str = ""
    pinned_bytes: int = 0
    unadmitted_count: int = 0
    written_last_day_bytes: int = 0
    expired_count: int = 0
    prefetched_count: int = 0
    prefetch_used_count: int = 0
    prefetch_wasted_count: int = 0
    read_seconds_per_mib: float = 0.0
    distrusted_seconds: float = 0.0
    crowded_out_count: int = 0
    auto_least_bytes: int = 0
    auto_most_bytes: int = 0
    auto_shrunk_count: int = 0
    auto_reason: str = ""
    #: Of GPU.
    device: str = ""


def host_stats(
    host: HostTier, leases: LeaseTable, mover: Mover, namespaces: Collection[Namespace]
) -> TierStats:
    """HOST, counted over these namespaces; capacity, allocation and queue are the whole tier's."""
    stats = _stats(host, namespaces)
    chosen = {namespace.namespace_id for namespace in namespaces}
    stats.quarantined_bytes = sum(
        lease.size_bytes
        for lease in leases
        if lease.kind is LeaseKind.QUARANTINE and lease.namespace_id in chosen
    )
    stats.queue_depth = mover.queue_depth
    return stats


def add_sizing(stats: TierStats, sizing: AutoSizing) -> None:
    """HOST chooses its capacity."""
    stats.auto_least_bytes = sizing.options.least_bytes
    stats.auto_most_bytes = sizing.most_bytes
    stats.auto_shrunk_count = sizing.shrunk_count
    stats.auto_reason = sizing.reason


def gpu_stats(gpu: Gpu, namespaces: Collection[Namespace]) -> list[TierStats]:
    """Each device likewise; those that stayed off have a reason and nothing else."""
    found = [_device_stats(gpu, each, namespaces) for each in gpu.devices]
    for name, reason in gpu.failures.items():
        off = TierStats(Tier.GPU, state=TierState.UNAVAILABLE, reason=reason, device=name)
        found.append(off)
    return found


def _device_stats(gpu: Gpu, device: Device, namespaces: Collection[Namespace]) -> TierStats:
    classes = [
        size_class
        for each in namespaces
        for size_class in dict.fromkeys(each.devices[device.number - 1])
    ]
    stats = _counted(device.slots, classes)
    stats.device = device.name
    stats.queue_depth = device.mover.queue_depth
    stats.error_count = device.error_count
    stats.reason = gpu.shortages.get(device.name, "")
    return stats


def disk_stats(disk: Disk, namespaces: Collection[Namespace]) -> TierStats:
    """DISK likewise; what concerns devices is the whole tier's."""
    stats = _stats(disk.tier, namespaces)
    stats.state, stats.reason = _disk_state(disk)
    stats.queue_depth = sum(mover.queue_depth for mover in disk.movers)
    stats.corrupt_count = disk.reader.corrupt_count + disk.damaged_record_count
    stats.error_count = sum(mover.error_count for mover in disk.movers)
    stats.error_count += disk.reader.unreadable_count
    stats.demoted_count = stats.stored_count
    stats.unwritten_count = disk.demotion.unwritten_count
    stats.pending_bytes = disk.demotion.waiting_bytes
    stats.read_bytes = sum(mover.read_bytes for mover in disk.movers)
    stats.written_bytes = disk.writer.written_bytes
    stats.written_last_day_bytes = sum(mover.written_last_day.total_bytes for mover in disk.movers)
    stats.read_seconds_per_mib = max(mover.forecast.seconds_per_mib for mover in disk.movers)
    return stats


def _disk_state(disk: Disk) -> tuple[TierState, str]:
    """UNAVAILABLE if every volume is, DEGRADED if one is not as it should be."""
    bad = [mover for mover in disk.movers if mover.health is not Health.ACTIVE]
    reason = "; ".join(f"{mover.storage.path}: {mover.reason}" for mover in bad)
    if bad and all(not mover.is_readable for mover in disk.movers):
        return TierState.UNAVAILABLE, reason
    if bad:
        return TierState.DEGRADED, reason
    if not disk.is_recovered:
        return TierState.RECOVERING, "its tables are still being read"
    growth = [
        f"{mover.storage.path} cannot grow: {mover.storage.growth_error}"
        for mover in disk.movers
        if mover.storage.growth_error
    ]
    return TierState.ACTIVE, "; ".join(growth)


def cluster_stats(cluster: Cluster, namespaces: Collection[Namespace]) -> TierStats:
    """CLUSTER: what this agent did with it; sizes are the servers' own, for all nodes."""
    counters = [
        cluster.reader.counters(namespace, group)
        for namespace in namespaces
        for group in range(len(namespace.spec.block_bytes))
    ]
    movers, report = (cluster.asking, cluster.moving), cluster.report
    worst = max(movers, key=lambda mover: mover.health)
    return TierStats(
        tier=Tier.CLUSTER,
        capacity_bytes=report.maxmemory_bytes if report else 0,
        allocated_bytes=report.used_bytes if report else 0,
        used_bytes=report.used_bytes if report else 0,
        leased_bytes=0,
        block_count=0,
        lookup_count=sum(each.looked_up for each in counters),
        lookup_hit_count=sum(each.found for each in counters),
        hit_count=sum(each.hits for each in counters),
        miss_count=0,
        stored_count=cluster.writer.stored_count,
        evicted_count=0,
        refused_count=0,
        promoted_count=sum(each.promoted for each in counters),
        queue_depth=sum(mover.queue_depth for mover in movers),
        state=TierState(worst.health),
        reason=worst.reason,
        corrupt_count=cluster.reader.faults.total(),
        error_count=sum(mover.error_count for mover in movers),
        demoted_count=cluster.writer.stored_count,
        unwritten_count=cluster.demotion.unwritten_count,
        pending_bytes=cluster.demotion.waiting_bytes,
        read_bytes=cluster.moving.read_bytes,
        written_bytes=cluster.moving.written_bytes,
        written_last_day_bytes=cluster.moving.written_last_day.total_bytes,
        read_seconds_per_mib=cluster.moving.forecast.seconds_per_mib,
    )


def _stats(tier: SlotTier, namespaces: Collection[Namespace]) -> TierStats:
    classes = [each for namespace in namespaces for each in namespace.classes_of(tier.tier)]
    return _counted(tier, classes)


def _counted(tier: SlotTier, classes: Collection[SizeClass]) -> TierStats:
    return TierStats(
        tier=tier.tier,
        capacity_bytes=tier.space.capacity_bytes,
        allocated_bytes=tier.space.allocated_bytes,
        used_bytes=sum(each.used_slots * each.slot_bytes for each in classes),
        leased_bytes=sum(each.referenced_slots * each.slot_bytes for each in classes),
        block_count=sum(len(each.residency) for each in classes),
        lookup_count=sum(each.counters.looked_up for each in classes),
        lookup_hit_count=sum(each.counters.found for each in classes),
        hit_count=sum(each.counters.hits for each in classes),
        miss_count=sum(each.counters.misses for each in classes),
        stored_count=sum(each.counters.stored for each in classes),
        evicted_count=sum(each.counters.evicted for each in classes),
        refused_count=sum(each.counters.refused for each in classes),
        unadmitted_count=sum(each.counters.unadmitted for each in classes),
        promoted_count=sum(each.counters.promoted for each in classes),
        policy=tier.policy_name,
        admission=tier.admission_name,
        pinned_bytes=sum(each.pinned.size_bytes for each in classes),
        expired_count=sum(each.counters.expired for each in classes),
        crowded_out_count=sum(
            each.counters.causes[cause] for each in classes for cause in _CROWDING
        ),
        prefetched_count=sum(each.unused.brought_count for each in classes),
        prefetch_used_count=sum(each.unused.used_count for each in classes),
        prefetch_wasted_count=sum(each.unused.wasted_count for each in classes),
    )

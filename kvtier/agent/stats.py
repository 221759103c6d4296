"""What an agent holds and has done, for operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvtier.agent.mover import Mover
from kvtier.agent.namespaces import Namespace
from kvtier.core.block import Tier
from kvtier.core.lease import LeaseKind, LeaseTable
from kvtier.tiers.host import HostTier


@dataclass(frozen=True)
class TierStats:
    """One tier, for some namespaces. Counts are blocks since the agent's start."""

    tier: Tier
    capacity_bytes: int
    allocated_bytes: int
    used_bytes: int
    leased_bytes: int
    quarantined_bytes: int
    block_count: int
    lookup_count: int
    lookup_hit_count: int
    hit_count: int
    miss_count: int
    stored_count: int
    evicted_count: int
    refused_count: int
    queue_depth: int


def host_stats(
    host: HostTier, leases: LeaseTable, mover: Mover, namespaces: Collection[Namespace]
) -> TierStats:
    """HOST, counted over these namespaces; capacity, allocation and queue are the whole tier's."""
    classes = [each for namespace in namespaces for each in namespace.classes]
    chosen = {namespace.namespace_id for namespace in namespaces}
    quarantined = sum(
        lease.size_bytes
        for lease in leases
        if lease.kind is LeaseKind.QUARANTINE and lease.namespace_id in chosen
    )
    return TierStats(
        tier=Tier.HOST,
        capacity_bytes=host.arena.capacity_bytes,
        allocated_bytes=host.arena.allocated_bytes,
        used_bytes=sum(each.used_slots * each.slot_bytes for each in classes),
        leased_bytes=sum(each.referenced_slots * each.slot_bytes for each in classes),
        quarantined_bytes=quarantined,
        block_count=sum(len(each.residency) for each in classes),
        lookup_count=sum(each.counters.looked_up for each in classes),
        lookup_hit_count=sum(each.counters.found for each in classes),
        hit_count=sum(each.counters.hits for each in classes),
        miss_count=sum(each.counters.misses for each in classes),
        stored_count=sum(each.counters.stored for each in classes),
        evicted_count=sum(each.counters.evicted for each in classes),
        refused_count=sum(each.counters.refused for each in classes),
        queue_depth=mover.queue_depth,
    )

"""Stats for those who may see some namespaces only."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from kvtier.v1 import block_pb2
from kvtier.v1 import cache_admin_pb2 as pb

#: What is counted over namespaces, or says nothing of any. All else, which would tell what others
#: do, is left out; what is added later too, until it is named here.
_OF_AGENT: Final = frozenset(
    {
        "epoch",
        "is_draining",
        "lease_count",
        "namespace_count",
        "sample_time",
        "session_count",
        "tiers",
        "uptime",
        "version",
    }
)
_OF_TIER: Final = frozenset(
    {
        "admission",
        "block_count",
        "capacity_bytes",
        "demoted_count",
        "device",
        "evicted_count",
        "expired_count",
        "hit_count",
        "leased_bytes",
        "lookup_count",
        "lookup_hit_count",
        "miss_count",
        "pinned_bytes",
        "policy",
        "prefetch_used_count",
        "prefetch_wasted_count",
        "prefetched_count",
        "promoted_count",
        "quarantined_bytes",
        "refused_count",
        "state",
        "stored_count",
        "tier",
        "unadmitted_count",
        "used_bytes",
    }
)
#: Of CLUSTER these are counted over all.
_NOT_OF_CLUSTER: Final = frozenset({"used_bytes", "stored_count", "demoted_count"})


def own_stats(stats: pb.Stats) -> pb.Stats:
    """The same message, without what is counted over all namespaces."""
    _keep(stats, _OF_AGENT)
    for tier in stats.tiers:
        is_cluster = tier.tier == block_pb2.TIER_CLUSTER
        _keep(tier, _OF_TIER - _NOT_OF_CLUSTER if is_cluster else _OF_TIER)
    return stats


def _keep(message: Message, names: frozenset[str]) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name not in names:
            message.ClearField(field.name)

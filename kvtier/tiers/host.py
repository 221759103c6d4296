"""The HOST tier."""

from __future__ import annotations

from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.tiers.arena import Arena
from kvtier.tiers.slot_tier import SlotTier


class HostTier(SlotTier):
    """Blocks in shared host memory, never more than `capacity_bytes` of it."""

    def __init__(
        self,
        capacity_bytes: int,
        *,
        policy: str = "lru",
        admission: str = "always",
        ages: Ages | None = None,
    ) -> None:
        self.arena = Arena(capacity_bytes)
        super().__init__(Tier.HOST, self.arena, policy=policy, admission=admission, ages=ages)

"""What workers asked of one namespace, and what they got."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtier.core.block import Lane, Tier
from kvtier.core.latency import Latency
from kvtier.core.namespace import NamespaceSpec


@dataclass(slots=True)
class TierUsage:
    """Of one tier. Blocks are those of the lead group: each stands for its tokens once."""

    #: Lookups that asked this tier, and found there all that they asked of it, some, or nothing.
    full_lookups: int = 0
    partial_lookups: int = 0
    missed_lookups: int = 0
    looked_up_blocks: int = 0
    found_blocks: int = 0
    #: By the first shard.
    loaded_blocks: int = 0
    #: Of blocks that came from here to HOST.
    promotions: Latency = field(default_factory=Latency)


class Usage:
    """Counts since the agent's start; the event loop owns it.

    A token has a block in every group and shard. So that it counts once, requests and tokens are
    counted by the lead group, the first one without a window, and loads by its first shard.
    """

    def __init__(self, spec: NamespaceSpec) -> None:
        groups = range(len(spec.block_bytes))
        self._lead_group = next((each for each in groups if spec.needs_parents(each)), 0)
        self._lead_lane = Lane(self._lead_group, 0)
        #: By tier.
        self.tiers = [TierUsage() for _ in range(max(Tier) + 1)]
        self.lookups, self.loads, self.stores = Latency(), Latency(), Latency()
        #: What was said last, by whichever session; 0.0 if nobody has.
        self.compute_seconds_per_block = 0.0
        self.compute_seconds_saved = 0.0
        #: Blocks whose bytes were not what the worker's digest says.
        self.mismatched_blocks = 0

    def looked_up(self, tier: Tier, group: int, asked: int, found: int) -> None:
        """A lookup asked a tier for so many blocks."""
        if group != self._lead_group or not asked:
            return
        usage = self.tiers[tier]
        usage.looked_up_blocks += asked
        usage.found_blocks += found
        if found == asked:
            usage.full_lookups += 1
        elif found:
            usage.partial_lookups += 1
        else:
            usage.missed_lookups += 1

    def loaded(self, tier: Tier, lane: Lane, blocks: int, compute_seconds: float) -> None:
        """A worker got so many blocks that a tier supplied; each takes it `compute_seconds` to
        compute (0.0: it has not said, but others may have)."""
        if lane == self._lead_lane:
            self.tiers[tier].loaded_blocks += blocks
            self.compute_seconds_saved += blocks * (
                compute_seconds or self.compute_seconds_per_block
            )

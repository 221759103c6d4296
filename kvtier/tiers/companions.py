"""Blocks that are of no use without each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvtier.core.block import Lane
from kvtier.core.cause import Cause
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass


class Companions:
    """The KV groups and shards of one namespace in one tier: what a worker loads is a block of all
    of them, so they are evicted together.

    A group that does not need parents (a sliding window) goes on its own: what it has lost is of
    use again behind the window. What is in use, or continued in its own lane, stays.
    """

    def __init__(
        self,
        size_classes: Sequence[SizeClass],
        shards: int,
        needs_parents: Callable[[int], bool],
    ) -> None:
        self._places = [
            (Lane(group, shard), size_class)
            for group, size_class in enumerate(size_classes)
            for shard in range(shards)
        ]
        self._needs_parents = needs_parents

    def follow(self, lane: Lane, block_hash: bytes, cause: Cause, taker: int) -> None:
        """A block of one lane was evicted."""
        is_alone = not self._needs_parents(lane.group)
        for other, size_class in self._places:
            if other == lane or (is_alone and other.group != lane.group):
                continue
            row = size_class.residency.find(other, block_hash)
            if row != NONE and size_class.is_evictable(row):
                size_class.forget(row, cause, taker)

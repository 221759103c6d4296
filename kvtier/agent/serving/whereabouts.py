"""Where blocks are, tier by tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import BlockKeys, Lane, Tier


class At(IntEnum):
    """Where a block is; the greatest number takes longest to read."""

    NOWHERE = 0
    HOST = 1
    ON_ITS_WAY = 2
    DISK = 3
    CLUSTER = 4


PLACES = {Tier.DISK: At.DISK, Tier.CLUSTER: At.CLUSTER}


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks that share a residency; `ready_after_seconds` is an estimate."""

    start: int
    count: int
    tier: Tier
    pending: bool = False
    ready_after_seconds: float = 0.0


class Whereabouts:
    """Answers from the books of HOST and from what slower tiers are known to have."""

    def __init__(self, promotion: Promotion) -> None:
        self._promotion = promotion

    def column(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], tiers: frozenset[Tier]
    ) -> list[int]:
        """Where each block of one lane is."""
        host = namespace.groups[lane.group]
        rows = host.find_many(lane, hashes) if Tier.HOST in tiers else [-1] * len(hashes)
        places: list[int] = [At.HOST if row >= 0 else At.NOWHERE for row in rows]
        if At.NOWHERE not in places or tiers == {Tier.HOST} or not self._promotion.sources:
            return places
        missing = [index for index, place in enumerate(places) if place == At.NOWHERE]
        found = self._promotion.find(namespace, lane, [hashes[index] for index in missing], tiers)
        for index, source in zip(missing, found, strict=True):
            if self._promotion.flight(host, lane, hashes[index]) is not None:
                places[index] = At.ON_ITS_WAY
            elif source is not None:
                places[index] = PLACES[source.tier]
        return places

    def runs(
        self, namespace: Namespace, keys: BlockKeys, lanes: list[Lane], places: list[int]
    ) -> list[Run]:
        """Cuts places into runs. What a tier has is read in order, run by run."""
        runs: list[Run] = []
        start = 0
        arrivals = self._promotion.arrivals(namespace)
        for place, group in groupby(places):
            count = len(list(group))
            hashes, after, tier = keys.hashes[start : start + count], 0.0, Tier.HOST
            if place == At.ON_ITS_WAY:
                after = self._seconds_until_landed(namespace, lanes, hashes)
            for source in self._promotion.sources:
                if place == PLACES[source.tier]:
                    tier = source.tier
                    after = max(arrivals.add(source, lane, hashes) for lane in lanes)
            runs.append(Run(start, count, tier, place == At.ON_ITS_WAY, after))
            start += count
        return runs

    def _seconds_until_landed(
        self, namespace: Namespace, lanes: list[Lane], hashes: Sequence[bytes]
    ) -> float:
        flights = [
            self._promotion.flight(namespace.groups[lane.group], lane, each)
            for lane in lanes
            for each in hashes
        ]
        sources = {flight.source for flight in flights if flight is not None}
        return max((source.seconds_until_landed() for source in sources), default=0.0)

"""Where blocks are, tier by tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from kvtier.agent.namespaces import Namespace
from kvtier.agent.promotion import Promotion
from kvtier.core.block import BlockKeys, Lane, Tier


class At(IntEnum):
    """Where a block is; the greatest number takes longest to read."""

    NOWHERE = 0
    HOST = 1
    ON_ITS_WAY = 2
    DISK = 3


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks that share a residency; `ready_after_seconds` is an estimate."""

    start: int
    count: int
    tier: Tier
    pending: bool = False
    ready_after_seconds: float = 0.0


class Whereabouts:
    """Answers from the books of HOST and, if there is one, of DISK."""

    def __init__(self, promotion: Promotion | None) -> None:
        self._promotion = promotion

    def column(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], tiers: frozenset[Tier]
    ) -> list[int]:
        """Where each block of one lane is."""
        host = namespace.groups[lane.group]
        rows = host.find_many(lane, hashes) if Tier.HOST in tiers else [-1] * len(hashes)
        places: list[int] = [At.HOST if row >= 0 else At.NOWHERE for row in rows]
        if self._promotion is None or At.NOWHERE not in places or Tier.DISK not in tiers:
            return places
        missing = [index for index, place in enumerate(places) if place == At.NOWHERE]
        on_disk = self._promotion.rows(namespace, lane, [hashes[index] for index in missing])
        for index, row in zip(missing, on_disk, strict=True):
            if self._promotion.is_under_way(host, lane, hashes[index]):
                places[index] = At.ON_ITS_WAY
            elif row >= 0:
                places[index] = At.DISK
        return places

    def runs(
        self, namespace: Namespace, keys: BlockKeys, lanes: list[Lane], places: list[int]
    ) -> list[Run]:
        """Cuts places into runs. What is on DISK is read in order, run by run."""
        runs: list[Run] = []
        start, wanted = 0, {lane: list[int]() for lane in lanes}
        for place, group in groupby(places):
            count = len(list(group))
            after = 0.0
            if self._promotion is not None and place == At.ON_ITS_WAY:
                after = self._promotion.seconds_until_landed()
            elif self._promotion is not None and place == At.DISK:
                disk = namespace.tiers[Tier.DISK][keys.lane.group]
                hashes = keys.hashes[start : start + count]
                for lane, rows in wanted.items():
                    rows += [row for row in disk.find_many(lane, hashes) if row >= 0]
                after = self._promotion.seconds_until(
                    disk, [row for rows in wanted.values() for row in rows]
                )
            tier = Tier.DISK if place == At.DISK else Tier.HOST
            runs.append(Run(start, count, tier, place == At.ON_ITS_WAY, after))
            start += count
        return runs

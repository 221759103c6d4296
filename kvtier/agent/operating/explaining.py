"""Why a block is here, or is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Final

from kvtier.access.scope import ALL, Scope
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.operating.history import Fact, History
from kvtier.agent.placing.evicting import is_pinned
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.agent.turns import WRITE_SLICE, slices
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.lease import LeaseKind, LeaseTable
from kvtier.core.residency import NONE

_EVERYWHERE = frozenset(Tier)


class Fate(IntEnum):
    """What became of a block (numbers as in the proto)."""

    CACHED = 1
    PENDING = 2
    EVICTED = 3
    NOT_ADMITTED = 4
    DAMAGED = 5
    EXPIRED = 6
    REMOVED = 7
    UNKNOWN = 8
    OTHER_LAYOUT = 9


#: The fate, and the reason; {policy} is the tier's, {taker} the namespace that made it go.
_FATES: Final = {
    Cause.EVICTED: (Fate.EVICTED, "{policy}: to make room for {taker}"),
    Cause.TRADED: (Fate.EVICTED, "{policy}: its space went to {taker}, which used it more"),
    Cause.RESIZED: (Fate.EVICTED, "{policy}: the tier was made smaller"),
    Cause.OVER_QUOTA: (Fate.EVICTED, "{policy}: the namespace's limit for this tier"),
    Cause.DAMAGED: (Fate.DAMAGED, "its bytes did not match their checksum, or could not be read"),
    Cause.LOST: (Fate.DAMAGED, "a failed sync, or a file with too much damage around it"),
    Cause.EXPIRED: (Fate.EXPIRED, "the namespace's time to live"),
    Cause.REMOVED: (Fate.REMOVED, "evicted on request"),
    Cause.INVALIDATED: (Fate.REMOVED, "the namespace was invalidated"),
    Cause.NO_ROOM: (Fate.NOT_ADMITTED, "no room: what could have made way was in use"),
    Cause.SESSION_SHARE: (Fate.NOT_ADMITTED, "no room within its session's leases.max_share"),
    Cause.WORTH_LESS: (Fate.NOT_ADMITTED, "{policy}: what was there was worth more"),
    Cause.QUOTA: (Fate.NOT_ADMITTED, "the namespace's limit for this tier"),
    Cause.ADMISSION: (Fate.NOT_ADMITTED, "the tier's admission"),
}


@dataclass(slots=True)
class Explanation:
    """What became of one block; `time` is in seconds of the wall clock, 0 where there is none.

    `tiers` have it, or will; `left_tier` is the one that it left last, or that refused it.
    """

    fate: Fate
    tiers: list[Tier] = field(default_factory=list)
    left_tier: Tier | None = None
    time: float = 0.0
    reason: str = ""
    layout_differences: list[str] = field(default_factory=list)
    lease_count: int = 0
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """What one call needs to know for each of its blocks."""

    namespace: Namespace
    lane: Lane
    being_stored: set[bytes]
    siblings: list[Namespace]
    #: By id.
    labels: dict[int, str]


class Explaining:
    """Answers from the books, from what CLUSTER is heard to have, and from the history.

    It changes nothing but for what CLUSTER is known to have: no block is used or moved by it.
    `policies` names each tier's policy.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        promotion: Promotion,
        leases: LeaseTable,
        history: History | None,
        policies: dict[Tier, str],
        *,
        disk: Disk | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.history = history
        self._namespaces = namespaces
        self._promotion = promotion
        self._leases = leases
        self._policies = policies
        self._disk = disk
        self._cluster = cluster

    async def explain(
        self, namespace: Namespace, keys: BlockKeys, scope: Scope = ALL
    ) -> list[Explanation]:
        """One for each key; they name no namespace but the scope's. CLUSTER is waited for as a
        lookup does."""
        lane = keys.lane
        await self._promotion.learn(namespace, lane, keys.hashes, _EVERYWHERE, is_prefix=False)
        question = _Question(
            namespace,
            lane,
            await self._being_stored(namespace, lane),
            self._namespaces.siblings(namespace),
            {
                each.namespace_id: each.label
                if scope.covers(each.spec.tenant, each.spec.name)
                else "a namespace of others"
                for each in self._namespaces
            },
        )
        found: list[Explanation] = []
        size = max(1, WRITE_SLICE // (1 + len(question.siblings)))
        async for part in slices(len(keys.hashes), size):
            hashes = keys.hashes[part]
            for block_hash, cached in zip(
                hashes, self._cached(namespace, lane, hashes), strict=True
            ):
                each = cached if cached.tiers else self._missing(question, block_hash)
                each.is_pinned = is_pinned(namespace, lane, block_hash)
                found.append(each)
        return found

    async def _being_stored(self, namespace: Namespace, lane: Lane) -> set[bytes]:
        """Blocks that have a slot, and are not committed yet."""
        parts = [
            part
            for lease in self._leases
            if lease.kind is LeaseKind.RESERVATION and lease.namespace_id == namespace.namespace_id
            for part in lease.parts
            if part.lane == lane
        ]
        found: set[bytes] = set()
        async for piece in slices(len(parts), 1):
            for part in parts[piece]:
                hashes = part.keys.hashes if part.keys is not None else ()
                found.update(h for h, slot in zip(hashes, part.slots, strict=False) if slot >= 0)
        return found

    def _cached(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes]
    ) -> list[Explanation]:
        """Where blocks are; without tiers for those that are nowhere."""
        found = [Explanation(Fate.CACHED) for _ in hashes]
        for tier, size_classes in namespace.places:
            size_class = size_classes[lane.group]
            references, slot = size_class.table.references, size_class.residency.slot
            for each, row in zip(found, size_class.find_many(lane, hashes), strict=True):
                if row != NONE:
                    if tier not in each.tiers:
                        each.tiers.append(tier)
                    each.lease_count += references[slot[row]]
        for source in self._promotion.sources:
            for each, has in zip(found, source.has(namespace, lane, hashes), strict=True):
                if has and source.is_remote:
                    each.tiers.append(source.tier)
                elif not has and each.tiers == [source.tier]:
                    each.reason = f"{source.tier.name} cannot be read now"
        return found

    def _missing(self, question: _Question, block_hash: bytes) -> Explanation:
        """Of a block that is nowhere."""
        namespace, lane = question.namespace, question.lane
        flight = self._promotion.flight(namespace.groups[lane.group], lane, block_hash)
        if flight is not None:
            reason = f"on its way from {flight.source.tier.name}"
            return Explanation(Fate.PENDING, [Tier.HOST], reason=reason)
        if block_hash in question.being_stored:
            return Explanation(Fate.PENDING, [Tier.HOST], reason="being stored by a worker")
        facts: list[Fact] = []
        if self.history is not None:
            facts = list(islice(self.history.facts(namespace.namespace_id, lane, block_hash), 2))
        if facts:
            return self._told(facts, question.labels)
        return _of_sibling(question, block_hash) or Explanation(
            Fate.UNKNOWN, reason=self._why_unknown()
        )

    def _told(self, facts: Sequence[Fact], labels: Mapping[int, str]) -> Explanation:
        """Of the last thing that is known; and if it left a tier, which other one had not taken it
        by then."""
        fact, *before = facts
        fate, reason = _FATES[fact.cause]
        taker = "others of its namespace"
        if fact.taker:
            taker = labels.get(fact.taker, "a namespace that is gone")
        reason = reason.format(policy=self._policies.get(fact.tier, ""), taker=taker)
        for each in before:
            if fate is Fate.EVICTED and each.cause.is_refusal and each.tier is not fact.tier:
                why = _FATES[each.cause][1].format(policy=self._policies.get(each.tier, ""))
                reason += f"; {each.tier.name} had not let it in: {why}"
        return Explanation(fate, left_tier=fact.tier, time=fact.time, reason=reason)

    def _why_unknown(self) -> str:
        if self._disk is not None and not self._disk.is_recovered:
            return "DISK is still being read: ask again when the agent is ready"
        if self._cluster is not None and not self._cluster.is_up:
            return "not here, and CLUSTER does not answer"
        if self.history is None:
            return "not here; there is no history (history.blocks is 0)"
        if self.history.dropped_count:
            return "never stored, or longer ago than the history reaches"
        return "never stored since the agent's start"


def _of_sibling(question: _Question, block_hash: bytes) -> Explanation | None:
    """Of a block that another layout has."""
    lane = question.lane
    for other in question.siblings:
        if lane.group >= len(other.groups):
            continue
        tiers = [
            tier
            for tier, size_classes in other.tiers.items()
            if size_classes[lane.group].residency.find(lane, block_hash) != NONE
        ]
        if tiers:
            return Explanation(
                Fate.OTHER_LAYOUT,
                tiers,
                reason=f"stored under {other.label}",
                layout_differences=question.namespace.spec.differences(other.spec),
            )
    return None

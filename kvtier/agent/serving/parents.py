"""Whether what a block continues is anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.policies.ghosts import name_of
from kvtier.core.policies.recent import Recent
from kvtier.core.residency import NONE


class Parents:
    """Finds stores that nobody could use: no prefix leads to them.

    A block may be continued from the time when it is reserved. Of reservations that ended without
    a commit some thousand ends are remembered; what continues those is let in.
    """

    def __init__(self, promotion: Promotion | None = None) -> None:
        self._promotion = promotion
        self._reserved = Recent()

    def reserved(self, namespace: Namespace, lane: Lane, end: bytes) -> None:
        """Blocks were reserved up to this one."""
        self._reserved.put(_name(namespace, lane, end), 0)

    def arrived(self, namespace: Namespace, lane: Lane, block_hash: bytes) -> None:
        """It was stored: from now on the block itself tells that it is here."""
        self._reserved.discard(_name(namespace, lane, block_hash))

    def orphans(self, namespace: Namespace, entries: Sequence[BlockKeys]) -> set[int]:
        """Which of these continue a block that is in no tier, nor among those before them."""
        ends: set[tuple[Lane, bytes]] = set()
        orphans = set()
        for index, keys in enumerate(entries):
            if (keys.lane, keys.parent) in ends or self._has_parent(namespace, keys):
                ends.update((keys.lane, each) for each in keys.hashes[-1:])
            else:
                orphans.add(index)
        return orphans

    def _has_parent(self, namespace: Namespace, keys: BlockKeys) -> bool:
        """Whether the block before these is somewhere, as far as is known, if they need it."""
        lane, parent = keys.lane, keys.parent
        if not parent or not namespace.spec.needs_parents(lane.group):
            return True
        tiers = [classes[lane.group] for classes in namespace.tiers.values()]
        if any(each.residency.find(lane, parent) != NONE for each in tiers):
            return True
        if self._reserved.get(_name(namespace, lane, parent)) != NONE:
            return True
        promotion = self._promotion
        if promotion is None:
            return False
        if promotion.flight(namespace.groups[lane.group], lane, parent) is not None:
            return True
        return promotion.find(namespace, lane, [parent], frozenset(Tier)) != [None]


def _name(namespace: Namespace, lane: Lane, block_hash: bytes) -> bytes:
    return name_of(lane, block_hash) + namespace.generation_id

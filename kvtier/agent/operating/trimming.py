"""Making namespaces smaller on request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kvtier.agent.placing.evicting import Evicted
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.tiers.size_class import SizeClass

#: Blocks of one turn: each asks every size class for its coldest block.
_SLICE = 16


class Trimming:
    """What some namespaces have in one tier, and letting go of it what is coldest.

    What is leased or pinned stays, with what comes before it.
    """

    def __init__(self, namespaces: Iterable[Namespace], tier: Tier) -> None:
        self._classes = [each for namespace in namespaces for each in namespace.classes_of(tier)]

    @property
    def used_bytes(self) -> int:
        """In whole slots, reserved ones too."""
        return sum(each.used_slots * each.slot_bytes for each in self._classes)

    def expected(self, most_bytes: int) -> Evicted:
        """What `trim` would evict, if nothing stood in its way: an estimate, as blocks of several
        sizes go together."""
        used = self.used_bytes
        excess = max(0, used - most_bytes)
        blocks = sum(len(each.residency) for each in self._classes)
        return Evicted(gone=-(-blocks * excess // used) if used else 0)

    async def trim(self, most_bytes: int) -> Evicted:
        """Until no more than so much is used, or nothing more may go: then it says what is
        pinned."""
        evicted = Evicted()
        while True:
            before = self._evicted_count
            is_done = self._trim(most_bytes)
            evicted.gone += self._evicted_count - before
            if is_done:
                break
            await asyncio.sleep(0)
        if self.used_bytes > most_bytes:
            evicted.pinned = sum(each.pinned.block_count for each in self._classes)
        return evicted

    @property
    def _evicted_count(self) -> int:
        return sum(each.counters.evicted for each in self._classes)

    def _trim(self, most_bytes: int) -> bool:
        """Some blocks; whether it is done."""
        for _ in range(_SLICE):
            coldest = self._coldest() if self.used_bytes > most_bytes else None
            if coldest is None or not coldest.evict_one(cause=Cause.REMOVED):
                return True
        return False

    def _coldest(self) -> SizeClass | None:
        """The size class whose coldest block is the oldest; None if nothing may go."""
        ranked = [
            (rank, each) for each in self._classes if (rank := each.coldest_rank()) is not None
        ]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None

"""A policy over residency as a tier has it, without slots; and the rules that hold for each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, NEVER, Context
from kvtier.core.policies.named import NewPolicy
from kvtier.core.residency import NONE, Residency


class PolicyTier:
    """`capacity` blocks of any lanes. `leases` and `pins` count by row."""

    def __init__(
        self, new_policy: NewPolicy, capacity: int, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.residency = Residency()
        self.capacity = capacity
        self.leases: dict[int, int] = {}
        self.pins: set[int] = set()
        self.admitted: set[int] = set()
        context = Context(itertools.count(1), clock, random.Random(0))
        self.policy = new_policy(self, context)

    def is_evictable(self, row: int) -> bool:
        return (
            self.residency.slot[row] != NONE
            and self.residency.is_leaf(row)
            and not self.leases.get(row)
            and row not in self.pins
        )

    def may_go(self) -> set[int]:
        rows = range(self.residency.row_count)
        return {row for row in rows if self.is_evictable(row)}

    def find(self, keys: BlockKeys) -> list[int]:
        return self.residency.find_many(keys.lane, keys.hashes)

    def lease(self, rows: list[int]) -> None:
        for row in rows:
            self.leases[row] = self.leases.get(row, 0) + 1

    def end_lease(self, rows: list[int]) -> None:
        for row in reversed(rows):
            self.leases[row] -= 1
            if not self.leases[row]:
                del self.leases[row]
                self.free(row)

    def free(self, row: int) -> None:
        if self.residency.slot[row] != NONE and self.is_evictable(row):
            self.policy.release(row)

    def evict(self, worth: float = ALWAYS) -> int:
        row = self.policy.victim(worth)
        if row != NONE:
            assert self.is_evictable(row), row
            self.forget(row)
        return row

    def forget(self, row: int) -> None:
        self.policy.remove(row)
        parent = self.residency.remove(row)
        if parent != NONE:
            self.policy.release(parent)

    def load(self, keys: BlockKeys) -> int:
        """Uses the leading blocks that are here; how many."""
        rows = self.find(keys)
        hits = (*rows, NONE).index(NONE)
        self.policy.touch(rows[:hits])
        return hits

    def store(self, keys: BlockKeys) -> list[int]:
        """What is missing, as far as there is room; returns new rows. All are leased meanwhile."""
        rows = self.find(keys)
        here = [row for row in rows if row != NONE]
        self.policy.keep(here)
        self.lease(here)
        new: list[int] = []
        for index, row in enumerate(rows):
            if row == NONE and (row := self._store_one(keys, index)) == NONE:
                break
            if row not in here:
                new.append(row)
        self.end_lease([row for row in here if row not in new])
        self.end_lease(new)
        return new

    def _store_one(self, keys: BlockKeys, index: int) -> int:
        before = keys.hashes[index - 1] if index else keys.parent
        parent = self.residency.find(keys.lane, before) if before else NONE
        worth = self.policy.worth(keys.lane, keys.hashes[index], parent)
        if worth <= NEVER:
            return NONE
        while len(self.residency) >= self.capacity:
            if self.evict(worth) == NONE:
                return NONE
        row = self.residency.insert(keys.lane, keys.hashes[index], before, keys.position + index, 1)
        self.policy.insert(row)
        self.lease([row])
        return row


def chain(name: int, count: int, lane: Lane | None = None, shared: int = 0) -> BlockKeys:
    """A chain whose first `shared` blocks are those of all others."""
    hashes = [
        bytes([place]) * 2 + (0 if place < shared else name + 1).to_bytes(14)
        for place in range(count)
    ]
    return BlockKeys(lane or Lane(), tuple(hashes))

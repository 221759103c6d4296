"""One tier, without bytes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, NEVER, Context
from kvtier.core.policies.named import NewPolicy
from kvtier.core.residency import NONE, Residency

_SLOT = 0
_LANE = Lane()


class SimulatedTier:
    """What a size class of the agent does with its policy, with slots that hold nothing.

    The calls come in the agent's order: `ask` for a request, `touch` what of it is here, `worth` of
    what follows, then `victim` and `remove` for each block that makes way, `insert` for each that
    comes, and `release` for what may go again. As there, a block goes only when it has no child
    here, and the chain that is being stored does not go.
    """

    def __init__(
        self, capacity_blocks: int, new_policy: NewPolicy, clock: Callable[[], float], seed: int
    ) -> None:
        self._room_blocks = capacity_blocks
        self.residency = Residency()
        self.written_blocks = 0
        self.read_blocks = 0
        self._guarded = NONE
        self.policy = new_policy(self, Context(itertools.count(1), clock, random.Random(seed)))

    def is_evictable(self, row: int) -> bool:
        residency = self.residency
        return (
            row != NONE
            and residency.slot[row] != NONE
            and residency.first_child[row] == NONE
            and row != self._guarded
        )

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Rows, -1 where absent."""
        return self.residency.find_many(_LANE, hashes)

    def ask(self, keys: BlockKeys) -> None:
        self.policy.ask(keys)

    def touch(self, rows: Sequence[int]) -> None:
        """They are read; the beginning of a prefix comes first in `rows`."""
        if rows:
            self.read_blocks += len(rows)
            self.policy.touch(rows)

    def would_take(self, hashes: Sequence[bytes], position: int) -> bool:
        """Whether `store` would take in one block at least."""
        worth = self._worth(hashes, position)
        has_room = self._room_blocks > 0
        return worth > NEVER and (has_room or self.policy.victim(worth) != NONE)

    def _worth(self, hashes: Sequence[bytes], position: int) -> float:
        before = hashes[position - 1] if position else b""
        parent = self.residency.find(_LANE, before) if before else NONE
        return self.policy.worth(_LANE, hashes[position], parent)

    def store(self, hashes: Sequence[bytes], position: int, *, is_wanted: bool = False) -> int:
        """Takes in what is not here of `hashes[position:]`, until what is here is worth more.

        With `is_wanted` it takes them in whatever they are worth. Returns how many of them are here
        then, from the first on.
        """
        residency, before = self.residency, hashes[position - 1] if position else b""
        parent = residency.find(_LANE, before) if before else NONE
        worth = ALWAYS if is_wanted else self._worth(hashes, position)
        index = position
        if worth > NEVER:
            for index in range(position, len(hashes)):
                self._guarded = parent
                if (parent := self._put(hashes[index], before, index, worth)) == NONE:
                    break
                before = hashes[index]
            else:
                index = len(hashes)
        guarded, self._guarded = self._guarded if parent == NONE else parent, NONE
        if guarded != NONE:
            self.policy.release(guarded)
        return index - position

    def _put(self, block_hash: bytes, before: bytes, position: int, worth: float) -> int:
        """The row of a block that is here now, or -1."""
        residency = self.residency
        row = residency.find(_LANE, block_hash)
        if row != NONE:
            return row
        while self._room_blocks <= 0:
            victim = self.policy.victim(worth)
            if victim == NONE:
                return NONE
            self._evict(victim)
        row = residency.insert(_LANE, block_hash, before, position, _SLOT)
        self._room_blocks -= 1
        self.policy.insert(row)
        self.written_blocks += 1
        return row

    def _evict(self, row: int) -> None:
        self.policy.remove(row)
        parent = self.residency.remove(row)
        self._room_blocks += 1
        if parent != NONE:
            self.policy.release(parent)

"""Which blocks are let in by policies that would take them all."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, NEVER, STEP, Asking, Blocks, Context, Policy
from kvtier.core.policies.ghosts import name_of
from kvtier.core.policies.recent import Recent
from kvtier.core.residency import NONE

#: Names that are remembered for each block that is here.
_NAMES_PER_BLOCK = 2
#: Who asks again for the same within so many seconds still does so for the same request.
_REQUEST_SECONDS = 60.0


@runtime_checkable
class CanChill(Protocol):
    """A policy that can take a block as its coldest."""

    def insert_cold(self, row: int) -> None:
        """In place of `insert`: the block goes first, unless it is used before.

        It counts as used when the coldest block was that may go now. Its rank is that block's, or
        the time of this call where the policy keeps the two apart.
        """
        ...


class Admission:
    """A policy behind a rule; this one lets in everything."""

    def __init__(self, policy: Policy, blocks: Blocks, context: Context) -> None:
        self._policy = policy
        self._residency = blocks.residency
        self._clock = context.clock

    def ask(self, keys: BlockKeys) -> None:
        for _ in self.asking(keys):
            pass

    def asking(self, keys: BlockKeys) -> Generator[None]:
        if isinstance(self._policy, Asking):
            yield from self._policy.asking(keys)
        else:
            self._policy.ask(keys)

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        return self._policy.worth(lane, block_hash, parent)

    def insert(self, row: int) -> None:
        self._policy.insert(row)

    def touch(self, rows: Sequence[int]) -> None:
        self._policy.touch(rows)

    def keep(self, rows: Sequence[int]) -> None:
        self._policy.keep(rows)

    def release(self, row: int) -> None:
        self._policy.release(row)

    def remove(self, row: int) -> None:
        self._policy.remove(row)

    def victim(self, worth: float = ALWAYS) -> int:
        return self._policy.victim(worth)

    def coldest(self, count: int) -> list[int]:
        return self._policy.coldest(count)

    def rank(self, row: int) -> int:
        return self._policy.rank(row)


class SecondHit(Admission):
    """Lets in what an earlier request asked for too.

    Requests are told apart by their last block: who asks for the same one again within 60 s still
    does so for the same request. What nobody looks up is never let in.
    """

    def __init__(self, policy: Policy, blocks: Blocks, context: Context) -> None:
        super().__init__(policy, blocks, context)
        self._asked = Recent()  # 1: by more than one request
        self._asked_at = Recent()  # of the last blocks of requests, in seconds since the first
        self._started_at = context.clock()

    def asking(self, keys: BlockKeys) -> Generator[None]:
        yield from super().asking(keys)
        now, last = (
            max(0, int(self._clock() - self._started_at)),
            name_of(keys.lane, keys.hashes[-1]),
        )
        asked_at = self._asked_at.get(last)
        if 0 <= asked_at <= now < asked_at + _REQUEST_SECONDS:
            return
        most = _NAMES_PER_BLOCK * len(self._residency)
        self._asked.remember(most)
        self._asked_at.remember(most)
        self._asked_at.put(last, now)
        get, put = self._asked.get, self._asked.put
        for hashes in _steps(keys.hashes):
            for name in [name_of(keys.lane, each) for each in hashes]:
                put(name, get(name) != NONE)
            yield

    def admitted(self, lane: Lane, hashes: Sequence[bytes]) -> int:
        for count, block_hash in enumerate(hashes):
            if self._asked.get(name_of(lane, block_hash)) != 1:
                return count
        return len(hashes)

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        if self._asked.get(name_of(lane, block_hash)) != 1:
            return NEVER
        return super().worth(lane, block_hash, parent)

    def remove(self, row: int) -> None:
        """What was let in once is let in again."""
        self._asked.put(name_of(*self._residency.describe(row)), 1)
        super().remove(row)


class ColdFirstTurn(Admission):
    """Lets in everything, what continues no earlier request as the coldest of all.

    A request continues another one if it has the other's last block, or the last but one; that it
    begins as others do is not enough. Its blocks get an ordinary place when they are used.
    """

    def __init__(self, policy: Policy, blocks: Blocks, context: Context) -> None:
        super().__init__(policy, blocks, context)
        if not isinstance(policy, CanChill):
            raise ValueError(
                f"cold_first_turn needs a policy with insert_cold; {type(policy).__name__} has none"
            )
        self._insert_cold = policy.insert_cold
        self._ends = Recent()  # 1: asked for, and nothing became of it yet
        self._beginnings = Recent()
        self._is_cold = array("b")

    def asking(self, keys: BlockKeys) -> Generator[None]:
        yield from super().asking(keys)
        lane, hashes = keys.lane, keys.hashes
        if self._ends.get(name_of(lane, hashes[-1])) == 1:
            return
        for recent in (self._ends, self._beginnings):
            recent.remember(_NAMES_PER_BLOCK * len(self._residency))
        find, ends = self._residency.find_many, self._ends.get
        known = bool(keys.parent and ends(name_of(lane, keys.parent)) >= 0)
        missing = b""
        for part in _steps(hashes):
            known = known or any(ends(name_of(lane, each)) != NONE for each in part)
            rows = [] if missing else find(lane, part)
            if NONE in rows:
                missing = part[rows.index(NONE)]
            yield
        for block_hash in hashes[-2:]:
            self._ends.put(name_of(lane, block_hash), 0)
        if not missing:
            return
        self._ends.put(name_of(lane, hashes[-1]), 1)
        if not known:
            self._beginnings.put(name_of(lane, missing), 0)
            return
        self._beginnings.discard(name_of(lane, missing))
        for part in _steps(hashes):
            self._warm([row for row in find(lane, part) if row != NONE])
            yield

    def insert(self, row: int) -> None:
        if row >= len(self._is_cold):
            self._is_cold.extend([False] * (row + 1 - len(self._is_cold)))
        name = name_of(*self._residency.describe(row))
        parent = self._residency.parent(row)
        is_cold = self._beginnings.get(name) != NONE or (
            parent != NONE and bool(self._is_cold[parent])
        )
        self._is_cold[row] = is_cold
        self._close(name)
        if is_cold:
            self._insert_cold(row)
        else:
            super().insert(row)

    def _close(self, name: bytes) -> None:
        if self._ends.get(name) == 1:
            self._ends.put(name, 0)

    def touch(self, rows: Sequence[int]) -> None:
        self._warm(rows)
        super().touch(rows)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep([row for row in rows if not self._is_cold[row]])

    def _warm(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._is_cold[row] = False


def _steps(hashes: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (hashes[start : start + STEP] for start in range(0, len(hashes), STEP))

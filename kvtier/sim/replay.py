"""Requests replayed through tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.named import NewPolicy
from kvtier.core.residency import NONE
from kvtier.sim.reading import Progress
from kvtier.sim.tier import SimulatedTier
from kvtier.sim.trace import Trace

_LANE = Lane()
_REPORT_REQUESTS = 64


class TierSpec(NamedTuple):
    """A tier to simulate."""

    capacity_blocks: int
    new_policy: NewPolicy


@dataclass
class TierTally:
    """What happened in one tier, in blocks."""

    hit_blocks: int = 0
    hit_tokens: int = 0
    written_blocks: int = 0
    read_blocks: int = 0


@dataclass
class Tally:
    """What happened in a replay. Tiers in their order, the fastest first."""

    requested_blocks: int
    requested_tokens: int
    tiers: list[TierTally] = field(default_factory=list)

    @property
    def hit_blocks(self) -> int:
        return sum(each.hit_blocks for each in self.tiers)

    @property
    def hit_tokens(self) -> int:
        return sum(each.hit_tokens for each in self.tiers)


class Replay:
    """Gives the requests of a trace to HOST, and to DISK below it if there is one.

    A block is a hit if it and all before it are in some tier. What HOST takes in is written to
    DISK as well, if DISK's policy admits it (write-through): then HOST takes it in whatever it is
    worth there, as the only way to DISK. What is read from DISK comes back to HOST, whatever it is
    worth, as a load in the agent does.
    """

    def __init__(self, trace: Trace, tiers: Sequence[TierSpec], seed: int = 0) -> None:
        self._trace = trace
        self._now = 0.0
        built = [SimulatedTier(*each, self._clock, seed) for each in tiers]
        self._host = built[0]
        self._disk = built[1] if len(built) > 1 else None
        self._tiers = built
        self._tally = Tally(trace.requested_blocks, sum(trace.tokens), [TierTally() for _ in built])

    def _clock(self) -> float:
        return self._now

    def run(self, progress: Progress = lambda done, whole: None) -> Tally:
        """All requests, from the first on."""
        trace, whole = self._trace, len(self._trace)
        for index, request in enumerate(trace):
            self._now = request.seconds
            if hashes := trace.hashes_of(request):
                self._ask(hashes, request.block_tokens)
            if index % _REPORT_REQUESTS == 0:
                progress(index, whole)
        progress(whole, whole)
        for tier, tally in zip(self._tiers, self._tally.tiers, strict=True):
            tally.written_blocks, tally.read_blocks = tier.written_blocks, tier.read_blocks
        return self._tally

    def _ask(self, hashes: tuple[bytes, ...], block_tokens: int) -> None:
        keys = BlockKeys(_LANE, hashes)
        for tier in self._tiers:
            tier.ask(keys)
        found = self._load(hashes, block_tokens)
        if found == len(hashes):
            return
        is_staged = self._disk is not None and self._disk.would_take(hashes, found)
        stored = self._host.store(hashes, found, is_wanted=is_staged)
        if self._disk is not None and stored:
            self._disk.store(hashes[: found + stored], found)

    def _load(self, hashes: tuple[bytes, ...], block_tokens: int) -> int:
        """How many blocks are hits; they are in HOST then, as far as it has room."""
        rows = self._host.find(hashes)
        if self._disk is None:
            found = _leading(rows)
            self._host.touch(rows[:found])
            self._count(0, found, block_tokens)
            return found
        lower = self._disk.find(hashes)
        found = _leading([max(pair) for pair in zip(rows, lower, strict=True)])
        if NONE not in rows[:found]:
            self._host.touch(rows[:found])
            self._count(0, found, block_tokens)
            return found
        self._disk.touch(
            [below for row, below in zip(rows[:found], lower, strict=False) if row == NONE]
        )
        from_disk = rows[:found].count(NONE)
        self._host.store(hashes[:found], rows.index(NONE), is_wanted=True)
        self._host.touch([row for row in self._host.find(hashes[:found]) if row != NONE])
        self._count(0, found - from_disk, block_tokens)
        self._count(1, from_disk, block_tokens)
        return found

    def _count(self, tier: int, blocks: int, block_tokens: int) -> None:
        self._tally.tiers[tier].hit_blocks += blocks
        self._tally.tiers[tier].hit_tokens += blocks * block_tokens


def _leading(rows: list[int]) -> int:
    return rows.index(NONE) if NONE in rows else len(rows)

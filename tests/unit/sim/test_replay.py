"""Replays against a plain model, and tiers together."""

from __future__ import annotations

import itertools
import random

import pytest

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import Blocks, Context
from kvtier.core.policies.lru import Lru
from kvtier.core.policies.named import POLICIES
from kvtier.sim.replay import Replay, Tally, TierSpec
from kvtier.sim.tier import SimulatedTier
from kvtier.sim.trace import Trace
from tests.unit.sim.trace_files import chains_of, random_chains, trace_of

LRU = POLICIES["lru"]


class PlainLru:
    """A dictionary of when blocks were last used; the end of a chain goes before its beginning."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: dict[int, int] = {}
        self.parent: dict[int, int | None] = {}
        self.ticks = itertools.count()

    def ask(self, chain: list[int]) -> int:
        here = list(itertools.takewhile(self.used.__contains__, chain))
        for each in reversed(here):
            self.used[each] = next(self.ticks)
        before = here[-1] if here else None
        for each in chain[len(here) :]:
            if len(self.used) == self.capacity and not self.evict(before):
                break
            self.used[each], self.parent[each] = next(self.ticks), before
            before = each
        return len(here)

    def evict(self, guarded: int | None) -> bool:
        parents = {self.parent[each] for each in self.used}
        ends = [each for each in self.used if each not in parents and each != guarded]
        if ends:
            del self.used[min(ends, key=self.used.__getitem__)]
        return bool(ends)


def replay(trace: Trace, capacity: int, policy: str = "lru") -> Tally:
    return Replay(trace, [TierSpec(capacity, POLICIES[policy])]).run()


@pytest.mark.parametrize("capacity", [1, 2, 5, 13, 40])
def test_lru_is_what_a_dictionary_says(capacity: int) -> None:
    for seed in range(20):
        trace = trace_of(random_chains(seed, requests=80, depth=6, branches=2))
        plain = PlainLru(capacity)
        assert replay(trace, capacity).hit_blocks == sum(map(plain.ask, chains_of(trace)))


@pytest.mark.parametrize("policy", POLICIES)
def test_capacities_hold_and_parents_stay_before_children(policy: str) -> None:
    trace = trace_of(random_chains(1, requests=300, depth=7, branches=2))
    rng = random.Random(1)
    tier = SimulatedTier(17, POLICIES[policy], lambda: rng.random() * 1e-9, seed=0)
    for request in trace:
        hashes = trace.hashes_of(request)
        tier.ask(BlockKeys(Lane(), hashes))
        found = [row for row in tier.find(hashes) if row >= 0]
        tier.touch(found)
        here = len(found)
        if here < len(hashes):
            here += tier.store(hashes, here)
        rows = tier.find(hashes)
        assert [row >= 0 for row in rows] == [index < here for index in range(len(rows))]
        assert len(tier.residency) <= 17
        for row in filter(lambda row: row >= 0, rows):
            assert tier.residency.position(row) == 0 or tier.residency.parent(row) >= 0
    tier.residency.check_integrity(lambda slot, row: slot == 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replay_repeats(policy: str) -> None:
    trace = trace_of(random_chains(2, requests=300, depth=7, branches=2))
    assert replay(trace, 20, policy) == replay(trace, 20, policy)


def test_policies_see_the_time_of_the_trace() -> None:
    trace = trace_of([[1], [2], [3]])
    clocks: list[float] = []

    class Watched(Lru):
        def __init__(self, blocks: Blocks, context: Context) -> None:
            super().__init__(blocks, context)
            self.clock = context.clock

        def ask(self, keys: BlockKeys) -> None:
            clocks.append(self.clock())

    Replay(trace, [TierSpec(2, Watched)]).run()
    assert clocks == [0.0, 1.0, 2.0]


def both(trace: Trace, host: int, disk: int) -> Tally:
    return Replay(trace, [TierSpec(host, LRU), TierSpec(disk, LRU)]).run()


def test_what_host_drops_is_read_from_disk_and_comes_back() -> None:
    first, second = [1, 2], [8, 9]
    tally = both(trace_of([first, second, first, first]), host=2, disk=4)
    host, disk = tally.tiers
    assert (host.hit_blocks, disk.hit_blocks) == (2, 2)
    assert (disk.written_blocks, disk.read_blocks) == (4, 2)
    assert host.written_blocks == 6  # four stored, two promoted


def test_a_prefix_may_begin_in_host_and_go_on_in_disk() -> None:
    tally = both(trace_of([[1, 2, 3], [9], [1, 2, 3]]), host=3, disk=9)
    assert [each.hit_blocks for each in tally.tiers] == [2, 1]


def test_what_host_does_not_take_is_not_written_to_disk() -> None:
    tally = both(trace_of([[1, 2, 3, 4], [1, 2, 3, 4]]), host=2, disk=9)
    assert [each.written_blocks for each in tally.tiers] == [2, 2]


def test_tokens_count_partial_blocks_and_blocks_their_own_length() -> None:
    trace = trace_of([[1, 2], [1, 2], [1]], block_tokens=16)
    trace.tokens[1] += 5
    tally = replay(trace, 9)
    assert (tally.hit_blocks, tally.hit_tokens, tally.requested_tokens) == (3, 48, 85)


def test_a_tier_smaller_than_a_request_keeps_its_beginning() -> None:
    trace = trace_of([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert replay(trace, 2).hit_blocks == 2

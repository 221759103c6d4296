"""Belady is the ceiling: what it hits, and what all choices together could."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from kvtier.core.policies.named import POLICIES
from kvtier.sim.belady import Belady
from kvtier.sim.replay import Replay, TierSpec
from tests.unit.sim.trace_files import chains_of, random_chains, trace_of

Held = frozenset[int]


def best_hits(chains: list[list[int]], capacity: int) -> int:
    """Tries everything that may be held between requests."""
    best: dict[Held, int] = {frozenset(): 0}
    for chain in chains:
        after: dict[Held, int] = {}
        for held, hits in best.items():
            found = hits + leading(chain, held)
            for kept in choices(held | set(chain), capacity):
                after[kept] = max(found, after.get(kept, 0))
        best = after
    return max(best.values())


def leading(chain: list[int], held: Held) -> int:
    return next((index for index, each in enumerate(chain) if each not in held), len(chain))


def choices(blocks: Held, capacity: int) -> list[Held]:
    size = min(capacity, len(blocks))
    return [frozenset(each) for count in range(size + 1) for each in combinations(blocks, count)]


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_nothing_hits_more(capacity: int) -> None:
    differing = 0
    for seed in range(40):
        trace = trace_of(random_chains(seed, requests=7, depth=3, branches=2))
        chains = chains_of(trace)
        hits = Belady(trace, capacity).run().hit_blocks
        assert hits == best_hits(chains, capacity), chains
        differing += hits != best_hits(chains, 10)
    assert differing > 5, "these capacities are no limit"


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_hits_more(policy: str) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        trace = trace_of(random_chains(seed, requests=60, depth=6, branches=2))
        capacity = rng.randint(1, trace.unique_blocks)
        online = Replay(trace, [TierSpec(capacity, POLICIES[policy])]).run()
        ceiling = Belady(trace, capacity).run()
        assert online.hit_blocks <= ceiling.hit_blocks


def test_what_is_not_used_again_is_not_taken_in() -> None:
    trace = trace_of([[1], [2], [3], [1]])
    tally = Belady(trace, 1).run()
    assert (tally.hit_blocks, tally.tiers[0].written_blocks) == (1, 1)


def test_room_for_all_is_all_that_repeats() -> None:
    trace = trace_of(random_chains(3, requests=200, depth=8, branches=3))
    tally = Belady(trace, trace.unique_blocks).run()
    assert tally.hit_blocks == trace.requested_blocks - trace.unique_blocks

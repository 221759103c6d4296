"""Policies without chains miss as often as libCacheSim's.

They are implementations of the same papers by others; a difference means that one is wrong.
"""

from __future__ import annotations

import libcachesim
import pytest

from kvtier.core.block import Lane
from kvtier.core.policies.named import POLICIES, NewPolicy
from tests.unit.core.policy_tier import PolicyTier
from tests.unit.core.traces import agentic, conversation

_POINTS = 0.003
_PART = 20
_THEIRS = {
    "lru": libcachesim.LRU,
    "s3fifo": libcachesim.S3FIFO,
    "sieve": libcachesim.Sieve,
    "arc": libcachesim.ARC,
}


@pytest.fixture(scope="module", params=["conversation", "agentic"])
def references(request: pytest.FixtureRequest) -> list[int]:
    return conversation() if request.param == "conversation" else agentic(1000)


def _misses(new_policy: NewPolicy, capacity: int, references: list[int]) -> float:
    """Of blocks that all begin a chain of their own."""
    tier = PolicyTier(new_policy, capacity)
    keys = {each: each.to_bytes(16, "little") for each in set(references)}
    residency, policy, lane, misses = tier.residency, tier.policy, Lane(), 0
    for each in references:
        row = residency.find(lane, keys[each])
        if row >= 0:
            policy.touch([row])
            continue
        misses += 1
        if len(residency) == capacity:
            tier.evict()
        row = residency.insert(lane, keys[each], b"", 0, 1)
        policy.insert(row)
        policy.release(row)
    return misses / len(references)


def _their_misses(name: str, capacity: int, references: list[int]) -> float:
    cache, request, hits = _THEIRS[name](capacity), libcachesim.Request(), 0
    request.obj_size = 1
    for each in references:
        request.obj_id = each + 1
        hits += cache.get(request)
    return 1 - hits / len(references)


@pytest.mark.parametrize("name", _THEIRS)
def test_misses_are_those_of_libcachesim(name: str, references: list[int]) -> None:
    capacity = len(set(references)) // _PART
    ours = _misses(POLICIES[name], capacity, references)
    assert abs(ours - _their_misses(name, capacity, references)) < _POINTS


def test_a_policy_is_not_mistaken_for_another(references: list[int]) -> None:
    capacity = len(set(references)) // _PART
    assert (
        abs(
            _misses(POLICIES["sieve"], capacity, references)
            - _their_misses("lru", capacity, references)
        )
        > 5 * _POINTS
    )

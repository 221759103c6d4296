"""Long requests are told to policies in steps, each of which is short enough for the event loop."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import STEP, Asking
from kvtier.core.policies.hd import Hd
from kvtier.core.policies.named import find_policy
from kvtier.core.residency import NONE
from tests.unit.core.policy_tier import PolicyTier

LONG = 3500
SLOW_TO_ASK = [("hd", "always"), ("lru", "second_hit"), ("lru", "cold_first_turn")]


def keys_of(name: int, count: int, shared: int = 0) -> BlockKeys:
    hashes = (
        place.to_bytes(4, "little") + (0 if place < shared else name + 1).to_bytes(12)
        for place in range(count)
    )
    return BlockKeys(Lane(), tuple(hashes))


def tier_of(policy: str, admission: str, now: list[float]) -> PolicyTier:
    return PolicyTier(find_policy(policy, admission), 2 * LONG, lambda: now[0])


def asking(tier: PolicyTier, keys: BlockKeys) -> Generator[None]:
    assert isinstance(tier.policy, Asking)
    return tier.policy.asking(keys)


@pytest.mark.parametrize(("policy", "admission"), SLOW_TO_ASK)
def test_a_long_request_takes_many_steps(policy: str, admission: str) -> None:
    tier = tier_of(policy, admission, [0.0])
    assert len(list(asking(tier, keys_of(0, LONG)))) >= LONG // STEP - 1


@pytest.mark.parametrize(("policy", "admission"), SLOW_TO_ASK)
def test_anything_may_happen_between_two_steps(policy: str, admission: str) -> None:
    """Others ask for the same, what is known goes, and who asked goes away."""
    now = [0.0]
    tier = tier_of(policy, admission, now)
    earlier, keys = keys_of(0, 1000), keys_of(1, LONG, shared=1000)
    for _ in range(2):
        tier.policy.ask(earlier)
        tier.store(earlier)
        now[0] += 100
    first, second, third = (asking(tier, keys) for _ in range(3))
    for _ in range(4):
        for each in (first, second, third):
            next(each, None)
    third.close()
    while tier.evict() != NONE:
        pass
    for _ in (*first, *second):
        pass
    now[0] += 100
    tier.policy.ask(keys)
    stored = tier.store(keys)
    assert len(stored) == LONG
    if isinstance(tier.policy, Hd):
        tier.policy.check_integrity()
        assert max(each.turn for each in tier.policy.records()) == 2


def test_a_long_chain_is_recognised_where_it_went_on() -> None:
    """By its last block here, and by its name when all are gone."""
    now = [0.0]
    tier = tier_of("hd", "always", now)
    assert isinstance(tier.policy, Hd)
    keys = keys_of(0, LONG)
    for turn, count in enumerate((900, 1800, 3500), 1):
        part = BlockKeys(Lane(), keys.hashes[:count])
        tier.policy.ask(part)
        tier.load(part)
        tier.store(part)
        assert [each.turn for each in tier.policy.records() if each.block_count] == [turn]
        now[0] += 100
        if turn == 2:
            while tier.evict() != NONE:
                pass

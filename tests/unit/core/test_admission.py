"""Behaviour of `kvtier.core.policies.admission`, and of what policies remember."""

from __future__ import annotations

import pytest

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.ghosts import Ghosts
from kvtier.core.policies.named import POLICIES, find_policy
from kvtier.core.policies.recent import Recent
from kvtier.core.policies.sketch import Sketch
from tests.unit.core.policy_tier import PolicyTier, chain

CHILLING = [name for name in POLICIES if name != "hd"]


class Clocked(PolicyTier):
    """A minute passes between two requests."""

    def __init__(self, policy: str, admission: str, capacity: int = 100) -> None:
        self.now = 0.0
        super().__init__(find_policy(policy, admission), capacity, lambda: self.now)

    def request(self, keys: BlockKeys) -> int:
        """Asks twice, loads, stores; how many blocks it stored."""
        self.now += 61.0
        self.policy.ask(keys)
        self.policy.ask(keys)
        self.load(keys)
        return len(self.store(keys))


def test_second_hit_lets_in_what_an_earlier_request_asked_for() -> None:
    tier = Clocked("lru", "second_hit")
    assert tier.request(chain(0, 4)) == 0
    assert tier.request(chain(0, 4)) == 4


def test_second_hit_lets_in_no_more_of_a_chain_than_was_asked_for() -> None:
    tier = Clocked("lru", "second_hit")
    tier.request(chain(0, 4))
    assert tier.request(chain(0, 6)) == 4
    assert tier.request(chain(0, 6)) == 2


def test_second_hit_knows_what_was_here() -> None:
    tier = Clocked("lru", "second_hit")
    for _ in range(2):
        tier.request(chain(0, 4))
    while tier.evict() >= 0:
        pass
    assert tier.request(chain(0, 4)) == 4


def test_second_hit_tells_lanes_apart() -> None:
    tier = Clocked("lru", "second_hit")
    tier.request(chain(0, 4))
    assert tier.request(chain(0, 4, Lane(0, 1))) == 0


def test_second_hit_survives_a_clock_that_goes_back() -> None:
    tier = Clocked("lru", "second_hit")
    tier.now = 1e9
    tier.request(chain(0, 4))
    tier.now = -1e9
    assert tier.request(chain(0, 4)) == 4


@pytest.mark.parametrize("policy", CHILLING)
def test_a_cold_first_turn_goes_before_what_continues_a_chain(policy: str) -> None:
    tier = Clocked(policy, "cold_first_turn", capacity=50)
    tier.request(chain(0, 8))
    tier.request(chain(0, 12))
    tier.request(chain(1, 8))
    gone = {tier.residency.find(Lane(), each) for each in chain(1, 8).hashes}
    assert {tier.evict() for _ in range(8)} == gone


def test_a_shared_beginning_makes_no_second_turn() -> None:
    tier = Clocked("lru", "cold_first_turn")
    tier.request(chain(0, 8, shared=4))
    tier.request(chain(0, 10, shared=4))
    tier.request(chain(1, 8, shared=4))
    ends = chain(1, 8, shared=4).hashes[4:]
    gone = {tier.residency.find(Lane(), each) for each in ends}
    assert {tier.evict() for _ in range(4)} == gone


def test_a_first_turn_that_is_stored_in_parts_stays_cold() -> None:
    tier = Clocked("lru", "cold_first_turn")
    tier.request(chain(0, 8))
    tier.request(chain(0, 10))
    keys = chain(1, 8)
    tier.policy.ask(keys)
    tier.store(BlockKeys(Lane(), keys.hashes[:4]))
    tier.store(BlockKeys(Lane(), keys.hashes[4:], keys.hashes[3], 4))
    gone = {tier.residency.find(Lane(), each) for each in keys.hashes}
    assert {tier.evict() for _ in range(8)} == gone


@pytest.mark.parametrize("admission", ["second_hit", "cold_first_turn"])
def test_hd_takes_no_rule(admission: str) -> None:
    with pytest.raises(ValueError, match="hd admits by what blocks are worth"):
        find_policy("hd", admission)


@pytest.mark.parametrize("admission", ["always", "second_hit", "cold_first_turn"])
@pytest.mark.parametrize("policy", CHILLING)
def test_what_is_remembered_is_bounded_by_what_is_here(policy: str, admission: str) -> None:
    tier = Clocked(policy, admission, capacity=64)
    for name in range(3000):
        tier.request(chain(name % 2000, 6))
    assert _longest(tier.policy) <= 4 * 4096 + 1024
    rule = tier.policy
    inner = getattr(rule, "_policy", rule)
    for ghosts in _ghosts_of(inner):
        assert len(ghosts) <= 64


def _ghosts_of(policy: object) -> list[Ghosts]:
    ghosts = getattr(policy, "_ghosts", ())
    return [ghosts] if isinstance(ghosts, Ghosts) else list(ghosts)


def _longest(policy: object) -> int:
    """Names that a rule remembers."""
    return max((len(each) for each in vars(policy).values() if isinstance(each, Recent)), default=0)


def test_recent_names_are_remembered_and_old_ones_go() -> None:
    recent = Recent()
    names = [bytes([each % 256]) + each.to_bytes(15) for each in range(20_000)]
    for number, name in enumerate(names):
        recent.put(name, number)
    assert [recent.get(name) for name in names[-4000:]] == list(range(16_000, 20_000))
    assert recent.get(names[0]) == -1
    assert len(recent) <= 2 * (4096 + 256)


def test_a_sketch_counts_and_forgets() -> None:
    sketch = Sketch()
    for _ in range(9):
        sketch.add(7)
    assert sketch.estimate(7) == 9
    assert sketch.estimate(8) == 0
    for other in range(100_000):
        sketch.add(other << 20 | 1)
    assert sketch.estimate(7) < 9

"""Behaviour of `kvtier.core.policies.hd`, as a tier sees it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
from hypothesis import given, settings

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, Context
from kvtier.core.policies.hd import Hd
from kvtier.core.residency import NONE, Residency
from kvtier.testing import ManualClock

LANE = Lane()


class Tier:
    """So many blocks under the policy, as a tier without slots."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity = capacity
        self.clock = ManualClock()
        self.residency = Residency()
        self.busy: set[int] = set()
        self.policy = Hd(self, Context(itertools.count(1), self.clock, random.Random(seed)))

    def is_evictable(self, row: int) -> bool:
        is_here = self.residency.slot[row] != NONE
        return is_here and row not in self.busy and self.residency.is_leaf(row)

    def ask(self, hashes: Sequence[bytes], lane: Lane = LANE) -> int:
        """How many leading blocks are here."""
        self.policy.ask(BlockKeys(lane, tuple(hashes)))
        rows = self.residency.find_many(lane, hashes)
        return [*rows, NONE].index(NONE)

    def load(self, hashes: Sequence[bytes], lane: Lane = LANE) -> None:
        rows = self.residency.find_many(lane, hashes)
        self.policy.touch(rows[: [*rows, NONE].index(NONE)])

    def store(self, hashes: Sequence[bytes], first: int = 0, lane: Lane = LANE) -> int:
        """Stores what is not here, from `first` on, until the policy refuses: how many."""
        stored, parent = 0, NONE
        if first:
            parent = self.residency.find(lane, hashes[first - 1])
        for place in range(first, len(hashes)):
            row = self.residency.find(lane, hashes[place])
            if row == NONE:
                worth = self.policy.worth(lane, hashes[place], parent)
                self.busy.add(parent)
                has_room = len(self.residency) < self.capacity or self.evict(worth)
                self.busy.discard(parent)
                if not has_room:
                    break
                before = hashes[place - 1] if place else b""
                row = self.residency.insert(lane, hashes[place], before, place, 0)
                self.policy.insert(row)
                stored += 1
            parent = row
        self.policy.keep([parent] if parent != NONE else [])
        if parent != NONE:
            self.policy.release(parent)
        return stored

    def request(self, hashes: Sequence[bytes]) -> int:
        """All of a request: how many blocks it hit."""
        hit = self.ask(hashes)
        self.load(hashes[:hit])
        self.store(hashes, hit)
        self.policy.check_integrity()
        return hit

    def evict(self, worth: float = ALWAYS) -> bool:
        row = self.policy.victim(worth)
        if row == NONE:
            return False
        assert self.is_evictable(row)
        self.forget(row)
        return True

    def forget(self, row: int) -> None:
        self.policy.remove(row)
        parent = self.residency.remove(row)
        if parent != NONE:
            self.policy.release(parent)


def chain(name: str, count: int) -> list[bytes]:
    return [f"{name} {index}".encode().ljust(16, b".") for index in range(count)]


def live(tier: Tier, sessions: int, turns: int, name: str = "chat") -> None:
    """Sessions that come back every 20 seconds, a block longer each time."""
    for turn in range(turns):
        for session in range(sessions):
            tier.clock.advance(20 / sessions)
            tier.request(chain(f"{name} {session}", 4 + turn))


def test_the_ends_of_chains_go_first() -> None:
    tier = Tier(100)
    tier.request(chain("a", 5))
    gone = []
    while (row := tier.policy.victim()) != NONE:
        gone.append(tier.residency.position(row))
        tier.forget(row)
    assert gone == [4, 3, 2, 1, 0]


def test_what_comes_back_is_kept_and_what_does_not_is_not_admitted() -> None:
    tier = Tier(400)
    live(tier, sessions=12, turns=30)
    once = 0
    for number in range(400):
        tier.clock.advance(0.5)
        if number % 40 == 0:
            live(tier, sessions=12, turns=1, name=f"late {number}")
        once += tier.request(chain(f"once {number}", 40)) or tier.store(chain(f"once {number}", 40))
    assert once < 400 * 40 / 4
    assert len(tier.residency) <= 400


def test_asking_again_for_the_same_is_one_request() -> None:
    tier = Tier(100)
    hashes = chain("a", 6)
    for _ in range(3):
        tier.clock.advance(1.0)
        tier.ask(hashes)
    tier.store(hashes[:3])
    tier.store(hashes, 3)
    tier.clock.advance(30.0)
    assert tier.request(hashes) == 6
    assert [(each.turn, each.block_count) for each in tier.policy.records()] == [(2, 6)]


def test_a_chain_whose_blocks_are_gone_is_known_when_it_comes_back() -> None:
    tier = Tier(100)
    tier.request(chain("a", 6))
    while tier.evict():
        pass
    tier.clock.advance(30.0)
    assert tier.request(chain("a", 8)) == 0
    assert [(each.turn, each.block_count) for each in tier.policy.records()] == [(2, 8)]


def test_a_beginning_that_others_share_is_a_head() -> None:
    tier = Tier(1000)
    for number in range(5):
        tier.clock.advance(10.0)
        tier.request(chain("system", 3) + chain(f"user {number}", 8))
    heads = [each for each in tier.policy.records() if each.is_head]
    assert [each.block_count for each in heads] == [3]
    others = [each for each in tier.policy.records() if not each.is_head]
    assert [each.turn for each in others] == [1] * 5


def test_lanes_are_kept_apart() -> None:
    tier = Tier(100)
    hashes = chain("a", 4)
    for lane in (LANE, Lane(1, 0), Lane(0, 1)):
        assert tier.ask(hashes, lane) == 0
        tier.store(hashes, lane=lane)
    assert [each.turn for each in tier.policy.records()] == [1, 1, 1]


def test_what_is_remembered_of_chains_that_are_gone_is_bounded() -> None:
    tier = Tier(50)
    for number in range(20_000):
        tier.clock.advance(1.0)
        tier.ask(chain(f"once {number}", 12))
    assert tier.policy.remembered_names <= 4096
    assert sum(1 for _ in tier.policy.records()) <= 4096


def test_a_clock_that_jumps_does_no_harm() -> None:
    tier = Tier(60)
    for number, seconds in enumerate((1.0, -50.0, 1e6, -1e6, 0.0) * 50):
        tier.clock.seconds += seconds
        tier.request(chain(f"session {number % 7}", 5 + number // 7))


def _forget_last(tier: Tier, hashes: Sequence[bytes], count: int) -> None:
    if (row := tier.residency.find(LANE, hashes[-1])) != NONE:
        tier.forget(row)


def _use_or_free_last(tier: Tier, hashes: Sequence[bytes], count: int) -> None:
    row = tier.residency.find(LANE, hashes[-1])
    if row in tier.busy:
        tier.busy.discard(row)
        tier.policy.release(row)
    elif row != NONE:
        tier.busy.add(row)


step: dict[str, Callable[[Tier, Sequence[bytes], int], object]] = {
    "request": lambda tier, hashes, count: tier.request(hashes),
    "ask": lambda tier, hashes, count: tier.ask(hashes),
    "load": lambda tier, hashes, count: tier.load(hashes),
    "store": lambda tier, hashes, count: tier.store(hashes, count // 2),
    "evict": lambda tier, hashes, count: tier.evict(),
    "busy": _use_or_free_last,
    "forget": _forget_last,
    "wait": lambda tier, hashes, count: tier.clock.advance(count * 7.0),
}
_steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(step)),
        st.integers(0, 5),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(_steps, st.integers(4, 30))
@settings(deadline=None, max_examples=150)
def test_books_agree_whatever_is_done(steps: list[tuple[str, int, int]], capacity: int) -> None:
    tier = Tier(capacity)
    for verb, name, count in steps:
        # Chains 3, 4 and 5 branch off chain 0.
        hashes = (chain("0", 3) if name > 2 else []) + chain(str(name), count + 1)
        step[verb](tier, hashes, count)
        tier.policy.check_integrity()
    for row in list(tier.busy):
        tier.busy.discard(row)
        if row != NONE and tier.residency.slot[row] != NONE:
            tier.policy.release(row)
    while tier.evict():
        pass
    assert len(tier.residency) == 0

"""`agent.operating.history`: the last facts, in a memory that never grows."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import tracemalloc

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvtier.agent.operating.history import Fact, History
from kvtier.core.block import Lane, Tier
from kvtier.core.cause import Cause
from kvtier.testing import ManualClock
from kvtier.tiers.host import HostTier

WAYS = 32
LANE = Lane()
Key = tuple[int, Lane, bytes]

keys = st.tuples(
    st.integers(1, 2),
    st.sampled_from([Lane(0, 0), Lane(1, 0), Lane(0, 1)]),
    st.integers(0, 2).map(lambda number: number.to_bytes(16, "big")),
)
departures = st.sampled_from([each for each in Cause if not each.is_refusal])
refusals = st.sampled_from([each for each in Cause if each.is_refusal])
tiers = st.sampled_from([Tier.HOST, Tier.DISK, Tier.CLUSTER])


class Machine(RuleBasedStateMachine):
    """Against a dictionary that forgets nothing, and knows how many entries are younger."""

    @initialize(blocks=st.sampled_from([1, 32, 64, 100, 500]))
    def begin(self, blocks: int) -> None:
        self.clock = ManualClock()
        self.history = History(blocks, self.clock)
        self.facts: dict[Key, Fact] = {}
        self.entered: dict[Key, int] = {}
        self.entries = 0

    @rule(key=keys, tier=tiers, cause=departures, taker=st.integers(0, 1 << 20))
    def note(self, key: Key, tier: Tier, cause: Cause, taker: int) -> None:
        self.history.note(*key, tier, cause, taker)
        known_taker = taker if taker < 1 << 19 else 0
        self.facts[key] = Fact(cause, tier, known_taker, self._now())
        self._enter(key)

    @rule(key=keys, tier=tiers, cause=refusals)
    def refuse(self, key: Key, tier: Tier, cause: Cause) -> None:
        before = self.history.find(*key)
        self.history.note_refusal(*key, tier, cause)
        self.facts[key] = Fact(cause, tier, 0, self._now())
        if before is None or not before.cause.is_refusal:
            self._enter(key)

    @rule(seconds=st.sampled_from([0.0, 0.0625, 1.0, 1e6, -0.5, -3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.clock.seconds = max(0.0, self.clock.seconds + seconds)

    @rule(key=keys)
    def find(self, key: Key) -> None:
        found = self.history.find(*key)
        if found is not None:
            assert found == self.facts[key]
        elif key in self.facts:
            assert self.entries - self.entered[key] >= WAYS, "forgotten too early"

    @rule()
    def is_bounded(self) -> None:
        assert self.history.entry_count <= self.history.capacity
        assert self.history.entry_count + self.history.dropped_count == self.entries

    def _enter(self, key: Key) -> None:
        self.entries += 1
        self.entered[key] = self.entries

    def _now(self) -> float:
        return int(self.clock.seconds * 16) / 16


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("KVTIER_EXAMPLES", "60")), stateful_step_count=80, deadline=None
)


def names(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def test_the_last_half_of_its_blocks_is_remembered() -> None:
    history = History(1 << 14, time.time)
    hashes = names(3 << 14)
    for each in hashes:
        history.note(1, LANE, each, Tier.HOST, Cause.EVICTED)
    recent = hashes[-(1 << 13) :]
    found = sum(history.find(1, LANE, each) is not None for each in recent)
    assert found >= 0.999 * len(recent)
    old = sum(history.find(1, LANE, each) is not None for each in hashes[: 1 << 14])
    assert old < 0.01 * (1 << 14)
    assert history.find(2, LANE, hashes[-1]) is None
    assert history.find(1, Lane(0, 1), hashes[-1]) is None


def test_memory_is_what_it_says_and_stays_so() -> None:
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        history = History(1 << 14, time.time)
        filled, _ = tracemalloc.get_traced_memory()
        assert abs(filled - before - history.size_bytes) < 4096
        for number in range(4 << 14):
            history.note(1, LANE, number.to_bytes(16, "big"), Tier.HOST, Cause.EVICTED)
        after, peak = tracemalloc.get_traced_memory()
        assert after - filled < 4096
        assert peak - filled < 4096
    finally:
        tracemalloc.stop()
    assert abs(len(gc.get_objects()) - objects) < 100
    assert history.entry_count <= history.capacity == 1 << 14
    assert history.dropped_count >= 3 << 14


def test_who_tries_again_and_again_pushes_nothing_out() -> None:
    history = History(32, time.time)
    history.note(1, LANE, b"evicted" * 3, Tier.HOST, Cause.EVICTED)
    for _ in range(100):
        history.note_refusal(1, LANE, b"refused" * 3, Tier.HOST, Cause.NO_ROOM)
    assert history.entry_count == 2
    fact = history.find(1, LANE, b"evicted" * 3)
    assert fact is not None
    assert fact.cause is Cause.EVICTED


def test_a_million_blocks_take_some_16_mib() -> None:
    history = History(1 << 20, time.time)
    assert history.size_bytes == 16 * (1 << 20) + (1 << 15)
    assert sys.getsizeof(history._facts) < 8 * (1 << 20) + 4096


def test_what_leaves_a_tier_is_noted_and_what_is_replaced_by_itself_is_not() -> None:
    host = HostTier(1 << 20)
    history = History(64, time.time)
    history.listen(host)
    blocks = host.size_class(7, 4096)
    extent = host.grow(blocks)
    extent.populate(extent.slots)
    blocks.publish(extent, extent.slots)
    for name, slot in zip(itertools.chain("ab"), blocks.take(2), strict=True):
        blocks.commit(LANE, name.encode() * 16, b"", 0, slot)
        blocks.release([slot])
    blocks.forget(blocks.residency.find(LANE, b"a" * 16), Cause.SUPERSEDED)
    assert history.find(7, LANE, b"a" * 16) is None
    assert blocks.evict_one(taker=9)
    fact = history.find(7, LANE, b"b" * 16)
    assert fact is not None
    assert fact[:3] == (Cause.EVICTED, Tier.HOST, 9)
    host.close()

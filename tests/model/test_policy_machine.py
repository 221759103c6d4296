"""Every policy, and every rule of admission, against a plain dictionary.

`KVTIER_EXAMPLES=5000 pytest tests/model` looks further.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS
from kvtier.core.policies.named import ADMISSIONS, POLICIES, NewPolicy, find_policy
from kvtier.core.residency import NONE
from tests.faults.repetitions import times
from tests.unit.core.policy_tier import PolicyTier, chain

EXAMPLES = int(os.environ.get("KVTIER_EXAMPLES", "0")) or times(500)
LANES = [Lane(), Lane(0, 1), Lane(3)]

chains = st.builds(
    chain,
    st.integers(0, 5),
    st.integers(1, 12),
    st.sampled_from(LANES),
    st.sampled_from([0, 0, 2]),
)


class PolicyMachine(RuleBasedStateMachine):
    """The model: which blocks are here, and what each continues."""

    new_policy: NewPolicy
    jumps_back = True

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.here: dict[tuple[Lane, bytes], tuple[Lane, bytes] | None] = {}
        self.leased: list[list[int]] = []

    @initialize(capacity=st.integers(1, 24))
    def start(self, capacity: int) -> None:
        self.tier = PolicyTier(type(self).new_policy, capacity, lambda: self.now)

    @rule(keys=chains, again=st.integers(1, 3))
    def ask(self, keys: BlockKeys, again: int) -> None:
        before = self.tier.policy.victim()
        for _ in range(again):
            self.tier.policy.ask(keys)
        assert (self.tier.policy.victim() == NONE) == (before == NONE)

    @rule(keys=chains)
    def load(self, keys: BlockKeys) -> None:
        here = [(keys.lane, each) in self.here for each in keys.hashes]
        assert self.tier.load(keys) == (*here, False).index(False)

    @rule(keys=chains)
    def request(self, keys: BlockKeys) -> None:
        self.tier.policy.ask(keys)
        self.load(keys)
        self.store(keys)

    @rule(keys=chains)
    def store(self, keys: BlockKeys) -> None:
        held = {row for rows in self.leased for row in rows} | self.tier.pins
        kept = {self.tier.residency.describe(row) for row in held}
        before = set(self.here)
        new = self.tier.store(keys)
        for row in new:
            lane, block_hash = self.tier.residency.describe(row)
            index = keys.hashes.index(block_hash)
            assert lane == keys.lane
            self.here[lane, block_hash] = (lane, keys.hashes[index - 1]) if index else None
        self._forget_missing()
        assert kept <= set(self.here)
        wanted = {(keys.lane, each) for each in keys.hashes}
        assert before & wanted <= set(self.here), "what is being stored does not evict itself"

    @rule(count=st.integers(1, 12))
    def evict(self, count: int) -> None:
        for _ in range(count):
            row = self.tier.policy.victim()
            assert self.tier.policy.victim() == row or self.tier.is_evictable(row)
            assert (row == NONE) == (not self.tier.may_go())
            if row == NONE:
                return
            key = self.tier.residency.describe(row)
            assert key not in self.here.values(), "a child is still here"
            self.tier.evict()
            del self.here[key]

    @rule(keys=chains, index=st.integers(0, 11))
    def remove(self, keys: BlockKeys, index: int) -> None:
        """On request, wherever it is in its chain; a block in use or pinned is not touched."""
        key = keys.lane, keys.hashes[index % len(keys.hashes)]
        row = self.tier.residency.find(*key)
        assert (row != NONE) == (key in self.here)
        if row != NONE and not self.tier.leases.get(row) and row not in self.tier.pins:
            self.tier.forget(row)
            del self.here[key]

    def _forget_missing(self) -> None:
        find = self.tier.residency.find
        self.here = {key: parent for key, parent in self.here.items() if find(*key) != NONE}

    @rule(keys=chains)
    def lease(self, keys: BlockKeys) -> None:
        rows = [row for row in self.tier.find(keys) if row != NONE]
        self.tier.lease(rows)
        self.leased.append(rows)

    @rule(which=st.integers(0, 7))
    def end_lease(self, which: int) -> None:
        if self.leased:
            self.tier.end_lease(self.leased.pop(which % len(self.leased)))

    @rule(keys=chains)
    def pin(self, keys: BlockKeys) -> None:
        self.tier.pins.update(row for row in self.tier.find(keys) if row != NONE)

    @rule()
    def unpin(self) -> None:
        rows, self.tier.pins = self.tier.pins, set()
        for row in sorted(rows):
            self.tier.free(row)

    @rule(capacity=st.integers(1, 24))
    def resize(self, capacity: int) -> None:
        self.tier.capacity = capacity
        while len(self.tier.residency) > capacity and self.tier.evict() != NONE:
            pass
        self._forget_missing()

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0, 3600.0, 1e9, -0.5, -100.0, -1e9]))
    def jump(self, seconds: float) -> None:
        self.now += seconds if seconds > 0 or self.jumps_back else 0.0

    @rule(worth=st.sampled_from([0.0, 1e-9, 0.01, 1.0, ALWAYS]))
    def ask_for_a_victim(self, worth: float) -> None:
        row = self.tier.policy.victim(worth)
        assert row == NONE or self.tier.is_evictable(row)

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "tier"):
            return
        tier = self.tier
        assert len(tier.residency) == len(self.here)
        for key in self.here:
            assert tier.residency.find(*key) != NONE
        assert len(tier.residency) <= max(tier.capacity, len(self.here))
        for row in range(tier.residency.row_count):
            if tier.residency.slot[row] != NONE:
                assert tier.policy.rank(row) > 0
        coldest = tier.policy.coldest(4)
        assert len(coldest) <= 4
        assert len(set(coldest)) == len(coldest)
        tier.residency.check_integrity(lambda slot, row: slot == 1)

    def teardown(self) -> None:
        """When nothing is in use any more, everything can be evicted, ends first."""
        if not hasattr(self, "tier"):
            return
        for rows in self.leased:
            self.tier.end_lease(rows)
        self.unpin()
        while self.tier.evict() != NONE:
            pass
        assert not len(self.tier.residency)


def check(new_policy: NewPolicy, examples: int) -> None:
    machine: Any = type("Machine", (PolicyMachine,), {"new_policy": staticmethod(new_policy)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("name", POLICIES)
def test_any_sequence_of_calls(name: str) -> None:
    check(find_policy(name), EXAMPLES)


@pytest.mark.parametrize("admission", [each for each in ADMISSIONS if each != "always"])
@pytest.mark.parametrize("name", ["lru", "s3fifo", "tinylfu"])
def test_any_sequence_of_calls_with_a_rule_of_admission(name: str, admission: str) -> None:
    check(find_policy(name, admission), max(10, EXAMPLES // 10))

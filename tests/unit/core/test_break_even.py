"""Behaviour of `kvtier.core.break_even`: what is loaded saves time, and a wait costs little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.core.break_even import (
    CAUTION,
    CONFIRMED,
    DISTRUSTED,
    SHARE,
    TRUSTED,
    Patience,
    allowance,
    worth_waiting,
)

RUNS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), max_size=8)


@pytest.mark.parametrize(
    ("runs", "compute_seconds", "worth"),
    [
        ([], 0.1, 0),
        ([(4, 0.0)], 0.1, 4),  # in HOST
        ([(10, 0.5)], 0.1, 10),
        ([(10, 2.0)], 0.1, 0),
        ([(10, 1.0)], 0.1, 0),  # an estimate is not a promise
        ([(10, 1.0)], CAUTION / 10, 10),  # just as long: the worker is free meanwhile
        ([(1, 1.0), (99, 1.2)], 0.1, 100),  # late for the first, early for all
        ([(10, 0.0), (10, 1.5)], 0.1, 10),  # what is in HOST does not pay for what is slow
        ([(10, 0.0), (10, 0.1), (10, 9.0), (10, 9.1)], 0.1, 20),
        ([(10, 0.0), (10, 1.5), (100, 1.6)], 0.1, 120),
        ([(10, 0.0), (10, 1.5), (100, 0.1)], 0.1, 120),  # nothing is ready before what it follows
        ([(5, 0.1)], 0.0, 0),  # who computes for nothing
    ],
)
def test_the_prefix_that_saves_most_is_worth_it(
    runs: list[tuple[int, float]], compute_seconds: float, worth: int
) -> None:
    assert worth_waiting(runs, compute_seconds) == worth


@given(RUNS, st.floats(1e-4, 10))
def test_nothing_saves_more(runs: list[tuple[int, float]], compute_seconds: float) -> None:
    worth = worth_waiting(runs, compute_seconds)
    count, ready, saved = 0, 0.0, {0: 0.0}
    for blocks, seconds in runs:
        ready = max(ready, seconds)
        count += blocks
        saved[count] = count * compute_seconds - CAUTION * ready
    assert saved[worth] == max(saved.values())


def test_a_wait_in_vain_may_cost_a_small_part_and_what_was_expected() -> None:
    assert allowance(100, 0.1, 0.0) == pytest.approx(SHARE * 10)
    assert allowance(100, 0.1, 1.0) == pytest.approx(SHARE * 10 + CAUTION)
    # Where that would be much, only one that was measured just now is trusted.
    long = TRUSTED * 10
    assert allowance(100, 0.1, long, TRUSTED) == pytest.approx(SHARE * 10)
    assert allowance(100, 0.1, long, CONFIRMED) == pytest.approx(SHARE * 10 + CAUTION * long)
    assert allowance(100, 0.1, 0.1, DISTRUSTED) == pytest.approx(SHARE * 10)


def test_patience_lasts_as_long_as_blocks_come_faster_than_they_are_computed() -> None:
    patience = Patience(100.0, compute_seconds=0.1, allowed_seconds=0.5)
    assert patience.seconds_left(100.0, 0) == pytest.approx(0.5)
    assert patience.seconds_left(100.4, 0) == pytest.approx(0.1)
    for block in range(1, 100):
        assert patience.seconds_left(100.4 + block * 0.09, block) > 0
    assert patience.seconds_left(109.4, 99) == pytest.approx(0.41)


def test_what_was_saved_before_is_not_spent_on_a_tier_that_stalls() -> None:
    patience = Patience(0.0, compute_seconds=1.0, allowed_seconds=0.5)
    assert patience.seconds_left(1.0, 50) == pytest.approx(0.5)
    assert patience.seconds_left(1.4, 50) == pytest.approx(0.1)
    assert patience.seconds_left(1.6, 50) == 0.0


def test_a_trickle_slower_than_computing_is_given_up() -> None:
    patience = Patience(0.0, compute_seconds=0.1, allowed_seconds=0.5)
    given_up = next(
        block for block in range(1000) if not patience.seconds_left(block * 0.15, block)
    )
    assert given_up == 10


@given(st.lists(st.tuples(st.floats(0.001, 5), st.integers(0, 20)), max_size=50))
def test_no_wait_costs_more_than_allowed(steps: list[tuple[float, int]]) -> None:
    """Whenever blocks come, who leaves when nothing is left has not lost more than that."""
    patience, now, arrived = Patience(0.0, compute_seconds=0.1, allowed_seconds=0.5), 0.0, 0
    for pause, blocks in steps:
        left = patience.seconds_left(now, arrived)
        if left <= pause:
            now += left
            break
        now, arrived = now + pause, arrived + blocks
    assert now - arrived * 0.1 <= 0.5 + 1e-9

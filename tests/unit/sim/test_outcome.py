"""Capacities as people write them, and what follows from a tally."""

from __future__ import annotations

import pytest

from kvtier.errors import ConfigError
from kvtier.sim.capacity import Capacity, parse_capacities, parse_capacity, parse_tiers
from kvtier.sim.costs import Costs
from kvtier.sim.experiment import Experiment
from kvtier.sim.trace import TraceBuilder
from tests.unit.sim.trace_files import trace_of

SHARE = (Capacity(fraction=0.5),)


def test_capacities_are_shares_or_sizes() -> None:
    assert parse_capacities("1%, 0.5%,64GiB") == [
        Capacity(fraction=0.01),
        Capacity(fraction=0.005),
        Capacity(size_bytes=64 << 30),
    ]
    assert parse_tiers("disk=100%,host=4096") == [
        Capacity(size_bytes=4096),
        Capacity(fraction=1.0),
    ]


@pytest.mark.parametrize("text", ["", "%", "x%", "0%", "-1%", "101%", "nan%", "0", "much", "1GB"])
def test_other_capacities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        parse_capacity(text)


@pytest.mark.parametrize("text", ["disk=1%", "host", "tape=1%", "host=1%,host=2%", "host=x"])
def test_other_tiers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|%"):
        parse_tiers(text)


def test_sizes_need_the_size_of_a_block() -> None:
    trace = trace_of([[1, 2, 3, 4]])
    assert Capacity(size_bytes=4096).blocks(trace, 2048.0) == 2
    assert Capacity(fraction=0.01).blocks(trace, None) == 1
    with pytest.raises(ConfigError, match="Give --block-bytes or --model"):
        Capacity(size_bytes=4096).blocks(trace, None)


def test_blocks_have_the_size_of_the_models_tokens_or_of_the_recording() -> None:
    builder = TraceBuilder("recording")
    builder.add(0.0, 32, 16, [1, 2], block_bytes=100)
    trace = builder.build()
    assert Costs().of(trace).block_bytes == 100
    assert Costs(block_bytes=7).of(trace).block_bytes == 7
    assert Costs(token_bytes=3).of(trace).block_bytes == 48
    assert Costs().of(trace_of([[1]])).block_bytes is None
    with pytest.raises(ConfigError, match="how large are the blocks of made"):
        Costs(prefill_tokens_per_second=1, disk_bytes_per_second=1).of(trace_of([[1]]))


def test_an_outcome_is_complete() -> None:
    trace = trace_of([[1, 2], [3], [1, 2], [1, 2, 4]], block_tokens=10)
    costs = Costs(block_bytes=100, prefill_tokens_per_second=5, host_bytes_per_second=200)
    result = Experiment("lru", (Capacity(size_bytes=400),), "lru").run(trace, costs)
    assert (result.trace, result.policy, result.disk_policy) == ("made", "lru", None)
    assert (result.capacity_fraction, result.capacity_blocks, result.capacity_bytes) == (1, 4, 400)
    assert (result.hit_blocks, result.block_hit_rate, result.token_hit_rate) == (4, 0.5, 0.5)
    (host,) = result.tiers
    assert (host.read_bytes, host.written_blocks, host.written_bytes) == (400, 4, 400)
    assert result.written_blocks_per_day == 4 * 86_400 / 3
    assert result.written_bytes_per_day == 400 * 86_400 / 3
    assert result.prefill_seconds == 16
    assert result.saved_seconds == 40 / 5 - 400 / 200
    assert result.saved_seconds_per_request == 6 / 4


def test_a_tier_slower_than_computing_saves_nothing() -> None:
    trace = trace_of([[1], [1]], block_tokens=10)
    slow = Costs(block_bytes=100, prefill_tokens_per_second=5, host_bytes_per_second=10)
    assert Experiment("lru", SHARE, "lru").run(trace, slow).saved_seconds == 0


def test_a_trace_of_no_duration_has_no_day() -> None:
    result = Experiment("lru", SHARE, "lru").run(trace_of([[1]]), Costs())
    assert result.written_blocks_per_day is None
    assert result.written_bytes_per_day is None


def test_belady_has_both_tiers_as_one() -> None:
    trace = trace_of([[1, 2, 3, 4]] * 3)
    result = Experiment("belady", (Capacity(fraction=0.25), Capacity(fraction=0.5)), "lru").run(
        trace, Costs()
    )
    assert (result.capacity_blocks, result.capacity_fraction, len(result.tiers)) == (3, 0.75, 1)
    assert (result.hit_blocks, result.disk_policy) == (6, None)


@pytest.mark.parametrize(
    ("policy", "disk_policy", "complaint"),
    [
        ("best", "lru", "no policy 'best'; write one of lru"),
        ("lru", "json:Nothing", "cannot be imported"),
        ("lru", "belady", "is a ceiling"),
    ],
)
def test_policies_that_are_none_are_refused(policy: str, disk_policy: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Experiment(policy, SHARE, disk_policy)

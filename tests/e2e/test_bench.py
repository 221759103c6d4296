"""The benchmarks' figures: 0.8 of what they are to reach, because test machines are noisy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

SLACK = 0.8


def bench(*arguments: str) -> dict[str, Any]:
    """One run of `kvtier bench`."""
    command = [sys.executable, "-m", "kvtier", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def reach(figures: dict[str, float], *arguments: str) -> None:
    """Up to three runs: a neighbour on the machine makes figures worse, never better."""
    for _ in range(3):
        measured = bench(*arguments)
        if all(measured[name] >= SLACK * figure for name, figure in figures.items()):
            return
    raise AssertionError(measured)


@pytest.mark.parametrize(
    ("block_bytes", "batch", "load_ratio", "store_ratio"),
    [("2MiB", 16, 0.70, 0.62), ("2MiB", 256, 0.85, 0.80), ("64KiB", 256, 0.45, 0.0)],
)
def test_copying_through_the_agent_is_near_a_plain_copy(
    block_bytes: str, batch: int, load_ratio: float, store_ratio: float
) -> None:
    options = ("--block-bytes", block_bytes, "--batch", str(batch), "--seconds", "1.5")
    reach({"load_ratio": load_ratio, "store_ratio": store_ratio}, "host", *options)


def test_lookups_cost_little_more_than_a_call_that_does_nothing() -> None:
    measured = bench("host", "--seconds", "0.5")
    null_call = measured["null_call_p50_us"]
    assert measured["lookup_16_p50_us"] <= 1.5 / SLACK * null_call, measured
    assert measured["lookup_8192_p50_us"] <= 10 / SLACK * null_call, measured


def test_a_million_blocks_are_small_and_do_not_stop_the_loop() -> None:
    for _ in range(3):
        measured = bench("metadata", "--seconds", "2")
        assert measured["blocks"] >= 1_000_000
        assert measured["bytes_per_block"] <= 600, measured
        if (
            measured["inserts_per_second"] >= SLACK * 50_000
            and measured["loop_lag_p999_ms"] <= 5 / SLACK
        ):
            return
    raise AssertionError(measured)

"""What policies hit on the public traces, if they are there."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from kvtier.sim.capacity import Capacity
from kvtier.sim.costs import Costs
from kvtier.sim.experiment import Experiment
from kvtier.sim.outcome import Outcome
from kvtier.sim.reading import read_trace
from kvtier.sim.trace import Trace
from tests.faults.repetitions import in_full

_FOLDER: Final = os.environ.get("KVTIER_TRACES")
pytestmark = pytest.mark.skipif(
    not _FOLDER, reason="KVTIER_TRACES is not set: the folder with the public traces"
)

CONVERSATION: Final = ("mooncake_conversation.jsonl.gz", None)
AGENTIC: Final = ("agentic_sessions.jsonl.gz", 512)
AGENTIC_SMALL: Final = ("agentic_sessions.jsonl.gz", None)
Source = tuple[str, int | None]

#: Share of the unique blocks: share of the requested blocks. The figures that come with the traces.
LRU: Final[dict[Source, dict[float, float]]] = {
    CONVERSATION: {0.01: 0.053, 0.05: 0.203, 0.1: 0.283, 0.2: 0.350},
    AGENTIC: {0.01: 0.031, 0.05: 0.252, 0.2: 0.846},
}
BELADY: Final[dict[Source, dict[float, float]]] = {
    CONVERSATION: {0.01: 0.246, 0.05: 0.366, 0.1: 0.366, 0.2: 0.366},
    AGENTIC: {0.01: 0.223, 0.05: 0.613, 0.2: 0.917},
}
#: What the default of HOST has to reach.
HD: Final[dict[Source, dict[float, float]]] = {
    CONVERSATION: {0.01: 0.100, 0.05: 0.215, 0.1: 0.287, 0.2: 0.340, 0.5: 0.357},
    AGENTIC: {0.01: 0.125, 0.05: 0.435, 0.1: 0.635, 0.2: 0.840, 0.5: 0.948},
}
MOST_BELOW_LRU: Final = 0.01
QUICK: Final = [(CONVERSATION, 0.01), (CONVERSATION, 0.1)]


@cache
def trace_of(source: Source) -> Trace:
    name, block_tokens = source
    return read_trace(Path(_FOLDER or "") / name, block_tokens)


@cache
def outcome(source: Source, policy: str, fraction: float) -> Outcome:
    return Experiment(policy, (Capacity(fraction=fraction),), "lru").run(trace_of(source), Costs())


def hit_rate(source: Source, policy: str, fraction: float) -> float:
    return outcome(source, policy, fraction).block_hit_rate


def cases(table: dict[Source, dict[float, float]]) -> list[object]:
    """All of them in full, two on the smaller trace in the quick form."""
    return [
        pytest.param(
            source,
            fraction,
            marks=[] if (source, fraction) in QUICK else [in_full],
            id=f"{source[0].partition('.')[0]}-{fraction}",
        )
        for source, rates in table.items()
        for fraction in rates
    ]


@pytest.mark.parametrize(("source", "fraction"), cases(LRU))
def test_lru_hits_what_others_measured(source: Source, fraction: float) -> None:
    assert hit_rate(source, "lru", fraction) == pytest.approx(LRU[source][fraction], abs=0.003)


@pytest.mark.parametrize(("source", "fraction"), cases(BELADY))
def test_belady_hits_what_others_measured(source: Source, fraction: float) -> None:
    assert hit_rate(source, "belady", fraction) == pytest.approx(
        BELADY[source][fraction], abs=0.001
    )


@pytest.mark.parametrize(("source", "fraction"), cases(HD))
def test_the_default_of_host_hits_enough(source: Source, fraction: float) -> None:
    rate = hit_rate(source, "hd", fraction)
    assert rate >= HD[source][fraction]
    assert rate >= hit_rate(source, "lru", fraction) - MOST_BELOW_LRU


def test_the_conversation_trace_takes_less_than_ten_seconds() -> None:
    began = time.process_time()
    read_trace(Path(_FOLDER or "") / CONVERSATION[0])
    read_seconds = time.process_time() - began
    assert read_seconds + outcome(CONVERSATION, "hd", 0.01).elapsed_seconds < 10


@in_full
def test_the_agentic_trace_of_small_blocks_takes_less_than_four_minutes() -> None:
    small = outcome(AGENTIC_SMALL, "hd", 0.01)
    assert small.requested_blocks > 14_000_000
    assert small.elapsed_seconds < 240

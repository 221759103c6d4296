"""What storing costs an engine that finds nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures

pytestmark = pytest.mark.full

PAIRS = 10
PROMPT_TOKENS = 2048


@pytest.fixture(scope="module")
def engine(llama: Path, directory: Path, agent: Any) -> Iterator[Engine]:
    with Engine(llama, directory / "cost.log", connector(agent.address)) as engine:
        yield engine.wait()


def test_stores_cost_hardly_anything(
    engine: Engine, plain: Engine, make_prompt: Callable[[int], list[int]], figures: Figures
) -> None:
    """Pairs of the same prompt, in turns first; what goes on after the answer counts, too."""
    for one in (engine, plain):
        one.generate({"prompt": make_prompt(PROMPT_TOKENS), "max_tokens": 16})
    ratios: dict[str, list[float]] = {"cpu": [], "first": [], "all": []}
    for number in range(PAIRS):
        prompt = make_prompt(PROMPT_TOKENS)
        took = {}
        for one in (engine, plain) if number % 2 else (plain, engine):
            took[one] = _take(one, prompt)
        for name, with_stores, without in zip(ratios, took[engine], took[plain], strict=True):
            ratios[name].append(with_stores / without)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    figures.add_ratio("stores: CPU seconds", medians["cpu"], 1.05)
    figures.add_ratio("stores: time to first token", medians["first"], 1.15)
    figures.add_ratio("stores: time in all", medians["all"], 1.15)
    metrics = engine.metrics()
    assert metrics["vllm:kvtier_stored_bytes_total"] > PAIRS * PROMPT_TOKENS * 20000
    assert medians["cpu"] <= 1.05
    assert medians["first"] <= 1.15
    assert medians["all"] <= 1.15


def _take(engine: Engine, prompt: list[int]) -> tuple[float, float, float]:
    """CPU seconds, seconds to the first token, and to the last one."""
    before = engine.cpu_seconds()
    answer = engine.generate({"prompt": prompt, "max_tokens": 16})["answers"][0]
    time.sleep(0.5)
    return engine.cpu_seconds() - before, answer["first_seconds"], answer["seconds"]

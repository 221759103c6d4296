"""Many requests at once, too many for the KV space, and some given up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures

pytestmark = pytest.mark.full

REQUESTS, REPETITIONS = 24, 2
#: Room for about 2100 tokens, where 8 requests at a time want up to 5000, and grow as they go.
SMALL: dict[str, Any] = {"num_gpu_blocks_override": 68, "max_model_len": 1024}


@pytest.fixture(scope="module")
def engine(llama: Path, directory: Path, agent: Any) -> Iterator[Engine]:
    transfer = connector(agent.address)
    with Engine(llama, directory / "load.log", transfer, **SMALL) as engine:
        yield engine.wait()


@pytest.fixture(scope="module")
def requests(make_prompt: Callable[[int], list[int]]) -> list[dict[str, Any]]:
    """Some share a beginning, all end differently; they come within a second."""
    source = random.Random(3)
    shared = [make_prompt(192), make_prompt(320)]
    requests = []
    for number in range(REQUESTS):
        prompt = [*shared[number % 3]] if number % 3 < 2 else []
        prompt += make_prompt(source.randrange(60, 300))
        requests.append(
            {"prompt": prompt, "max_tokens": 96, "delay": round(source.uniform(0, 1), 3)}
        )
    return requests


@pytest.fixture(scope="module")
def right(plain: Engine, requests: list[dict[str, Any]]) -> list[list[int]]:
    answers = plain.generate(*(dict(each) for each in requests))["answers"]
    return [answer["tokens"] for answer in answers]


def test_outputs_are_those_of_a_plain_engine(
    engine: Engine, requests: list[dict[str, Any]], right: list[list[int]], figures: Figures
) -> None:
    for _ in range(REPETITIONS):
        answers = engine.generate(*(dict(each) for each in requests))["answers"]
        assert not [answer["failure"] for answer in answers if answer["failure"]]
        wrong = [
            number for number, answer in enumerate(answers) if answer["tokens"] != right[number]
        ]
        assert not wrong
        engine.reset()
    metrics = engine.metrics()
    figures.add("preemptions of 48 requests", f"{metrics['vllm:num_preemptions_total']:.0f}")
    assert metrics["vllm:num_preemptions_total"] > 0
    assert metrics['vllm:kvtier_hit_blocks_total{tier="host"}'] > 0


def test_requests_given_up_disturb_no_others(
    engine: Engine, requests: list[dict[str, Any]], right: list[list[int]]
) -> None:
    source = random.Random(6)
    for _ in range(2):
        engine.reset()
        asked = [dict(each) for each in requests]
        given_up = set(source.sample(range(REQUESTS), 10))
        for number in given_up:
            if source.random() < 0.5:
                asked[number]["abort_after"] = source.randrange(1, 40)
            else:
                asked[number]["abort_seconds"] = source.uniform(0.05, 5.0)
        answers = engine.generate(*asked)["answers"]
        for number, answer in enumerate(answers):
            if number in given_up:
                assert answer["tokens"] == right[number][: len(answer["tokens"])]
            else:
                assert answer["tokens"] == right[number]
    engine.reset()  # nothing holds a block any more

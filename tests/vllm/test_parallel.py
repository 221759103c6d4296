"""A model split over two ranks: each stores and loads its own shard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm import cached_blocks
from tests.vllm.engine import Engine, connector

pytestmark = pytest.mark.full

PROMPT_TOKENS = 600


def test_two_tensor_parallel_engines_share(
    llama: Path, directory: Path, agent: Any, make_prompt: Callable[[int], list[int]]
) -> None:
    prompt = make_prompt(PROMPT_TOKENS)
    answers = []
    for name in ("tp-a", "tp-b"):  # one after the other: each has two ranks on two cores
        with Engine(
            llama,
            directory / f"{name}.log",
            connector(agent.address),
            environ={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
        ) as engine:
            engine.wait()
            answer = engine.generate({"prompt": prompt, "max_tokens": 16})["answers"][0]
            assert not answer["failure"]
            answers.append(answer["tokens"])
            engine.reset()
            hits = engine.metrics().get('vllm:kvtier_hit_tokens_total{tier="host"}', 0.0)
    (spec,) = cached_blocks.namespaces(agent.admin_address)
    assert spec.shards == 2
    assert hits == (PROMPT_TOKENS - 1) // 32 * 32
    assert answers[0] == answers[1]

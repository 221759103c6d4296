"""Engines whose bytes differ share nothing, and the agent says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engine import Engine, connector

pytestmark = pytest.mark.full

PROMPT_TOKENS = 1000


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"dtype": "bfloat16"}, "dtype"), ({"block_size": 64}, "block_tokens")],
    ids=["dtype", "block_size"],
)
def test_another_layout_is_no_hit(
    llama: Path,
    directory: Path,
    agent: Any,
    make_prompt: Callable[[int], list[int]],
    changed: dict[str, Any],
    named: str,
) -> None:
    prompt = make_prompt(PROMPT_TOKENS)
    transfer = connector(agent.address, namespace=f"by-{named.replace('_', '-')}")
    name = f"layout-{named}"
    with (
        Engine(llama, directory / f"{name}-a.log", transfer) as one,
        Engine(llama, directory / f"{name}-b.log", transfer, **changed) as other,
    ):
        for engine in (one.wait(), other.wait()):
            for _ in range(2):  # computed, then found: by itself, never by the other
                answer = engine.generate({"prompt": prompt, "max_tokens": 8})["answers"][0]
                assert not answer["failure"]
                engine.reset()
            block = changed.get("block_size", 32) if engine is other else 32
            hits = engine.metrics()['vllm:kvtier_hit_tokens_total{tier="host"}']
            assert hits == (PROMPT_TOKENS - 1) // block * block
        shown = subprocess.run(
            [sys.executable, "-m", "kvtier", "namespaces", "--address", agent.admin_address],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    assert named in shown

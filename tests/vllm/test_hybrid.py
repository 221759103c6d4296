"""A model with sliding windows: of their layers, only the tail of a prefix is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.waiting import wait_until
from tests.vllm import cached_blocks
from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures

pytestmark = pytest.mark.full

PROMPT_TOKENS = 1800
WINDOW_TOKENS = 128
BLOCK_TOKENS = 32


@pytest.fixture(scope="module")
def gemma(directory: Path) -> Path:
    path = directory / "gemma"
    script = Path(__file__).with_name("make_gemma.py")
    subprocess.run([sys.executable, str(script), str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def engines(gemma: Path, directory: Path, agent: Any) -> Iterator[tuple[Engine, Engine]]:
    """One without, one with the connector."""
    common: dict[str, Any] = {"skip_tokenizer_init": True}
    with (
        Engine(gemma, directory / "gemma-plain.log", **common) as plain,
        Engine(gemma, directory / "gemma.log", connector(agent.address), **common) as engine,
    ):
        yield plain.wait(), engine.wait()


def test_tokens_are_identical_and_windows_load_their_tail(
    engines: tuple[Engine, Engine],
    agent: Any,
    make_prompt: Callable[[int], list[int]],
    figures: Figures,
) -> None:
    plain, engine = engines
    prompts = [make_prompt(PROMPT_TOKENS) for _ in range(3)]
    prompts += [[*prompts[0][:960], *make_prompt(300)]]

    def ask(one: Engine, prompt: list[int]) -> list[int]:
        answer = one.generate({"prompt": prompt, "max_tokens": 24})["answers"][0]
        assert not answer["failure"]
        tokens: list[int] = answer["tokens"]
        return tokens

    right = [ask(plain, prompt) for prompt in prompts]
    assert [ask(engine, prompt) for prompt in prompts] == right
    (spec,) = cached_blocks.namespaces(agent.admin_address)
    wait_until(
        lambda: all(
            cached_blocks.stored_blocks(agent.address, spec, cached_blocks.block_hashes(prompt))
            == len(prompt) // BLOCK_TOKENS
            for prompt in prompts
        ),
        10.0,
        0.1,
    )
    before = engine.metrics()
    hits = 0
    for prompt, tokens in zip(prompts[:3], right, strict=False):
        engine.reset()
        assert ask(engine, prompt) == tokens
        hits += (len(prompt) - 1) // BLOCK_TOKENS
    after = engine.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('vllm:kvtier_hit_blocks_total{tier="host"}') == hits
    windows = len(spec.block_bytes) - 1
    assert windows >= 1
    tail = -(-(WINDOW_TOKENS - 1) // BLOCK_TOKENS) + 1
    most = hits * spec.block_bytes[0] + 3 * tail * sum(spec.block_bytes[1:])
    loaded = grown("vllm:kvtier_loaded_bytes_total")
    figures.add(
        "hybrid: loaded of all layers' bytes",
        f"{loaded / (hits * sum(spec.block_bytes)):.3f}",
        f"at most {most / (hits * sum(spec.block_bytes)):.3f}",
    )
    assert loaded <= most

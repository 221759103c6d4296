"""A prompt is computed once: the engine itself, another one, and one after a restart reuse it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier.client.admin import AdminClient
from tests.faults.waiting import wait_until
from tests.vllm import cached_blocks
from tests.vllm.engine import Engine
from tests.vllm.figures import Figures
from tests.vllm.repetitions import either

PROMPT_TOKENS = either(4096, 2048)
REPETITIONS = either(5, 2)
#: Ratios may be so many times their limits.
SLACK = either(1.0, 3.0)
#: Found of a prompt: all full blocks but the last, of which a token must be computed.
HIT_TOKENS = (PROMPT_TOKENS - 1) // 32 * 32

Pair = tuple[Engine, Engine]
Times = dict[str, list[float]]


@pytest.fixture(scope="module")
def prompts(make_prompt: Callable[[int], list[int]]) -> list[list[int]]:
    return [make_prompt(PROMPT_TOKENS) for _ in range(REPETITIONS)]


def _ask(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    answer: dict[str, Any] = engine.generate({"prompt": prompt, "max_tokens": 16})["answers"][0]
    assert not answer["failure"]
    return answer


def _wait_until_stored(agent: Any, prompt: list[int]) -> None:
    """On DISK too, so that nothing is written while a hit is measured."""
    spec = cached_blocks.namespaces(agent.admin_address)[0]
    hashes = cached_blocks.block_hashes(prompt)
    wait_until(
        lambda: cached_blocks.stored_blocks(agent.address, spec, hashes) == len(hashes), 10.0, 0.1
    )
    with AdminClient(agent.admin_address) as admin:
        admin.flush()


@pytest.fixture(scope="module")
def measured(
    plain: Engine, pair: Pair, agent: Any, prompts: list[list[int]]
) -> tuple[Times, list[tuple[str, list[int], list[int]]]]:
    """Seconds to the first token by kind, and (kind, tokens, right tokens) of every answer."""
    first, second = pair
    times: Times = {"cold": [], "own": [], "host": [], "disk": []}
    answers: list[tuple[str, list[int], list[int]]] = []

    def take(kind: str, engine: Engine, prompt: list[int], right: list[int]) -> None:
        answer = _ask(engine, prompt)
        answers.append((kind, answer["tokens"], right))
        times[kind].append(answer["first_seconds"])

    right = [_ask(plain, prompt)["tokens"] for prompt in prompts]
    for prompt, tokens in zip(prompts, right, strict=True):
        take("cold", first, prompt, tokens)
        _wait_until_stored(agent, prompt)
        take("own", first, prompt, tokens)
        take("host", second, prompt, tokens)
        take("own", second, prompt, tokens)
    assert agent.stop() == 0
    agent.start()
    _ask(second, prompts[0][:100])  # its first calls find that the agent was restarted
    time.sleep(1.5)
    for prompt, tokens in zip(prompts, right, strict=True):
        second.reset()
        take("disk", second, prompt, tokens)
        take("own", second, prompt, tokens)
        second.reset()
        take("host", second, prompt, tokens)
    return times, answers


def test_tokens_are_those_of_a_plain_engine(measured: Any) -> None:
    _, answers = measured
    wrong = [kind for kind, tokens, right in answers if tokens != right]
    assert not wrong


def test_vllm_reports_what_came_from_the_agent(measured: Any, pair: Pair) -> None:
    metrics = pair[1].metrics()
    hits = 3 * REPETITIONS * HIT_TOKENS
    assert metrics["vllm:external_prefix_cache_hits_total"] == hits
    assert metrics['vllm:kvtier_hit_tokens_total{tier="disk"}'] == REPETITIONS * HIT_TOKENS
    assert metrics['vllm:kvtier_hit_tokens_total{tier="host"}'] == 2 * REPETITIONS * HIT_TOKENS
    assert metrics["vllm:kvtier_loaded_bytes_total"] > 0
    assert pair[0].metrics()["vllm:kvtier_prefill_tokens_per_second"] > 0


def test_a_hit_takes_hardly_longer_than_the_engines_own(measured: Any, figures: Figures) -> None:
    times, _ = measured
    cold = figures.add_seconds(f"{PROMPT_TOKENS} tokens: cold", times["cold"])
    own = figures.add_seconds("own prefix cache", times["own"])
    host = figures.add_seconds("kvtier HOST", times["host"])
    disk = figures.add_seconds("kvtier DISK", times["disk"])
    limits = {
        "HOST / own": (host / own, 1.5),
        "HOST / cold": (host / cold, 0.03),
        "DISK / own": (disk / own, 2.5),
        "DISK / cold": (disk / cold, 0.05),
    }
    for name, (ratio, most) in limits.items():
        figures.add_ratio(name, ratio, most * SLACK)
    assert not [name for name, (ratio, most) in limits.items() if ratio > most * SLACK]


def test_changed_bytes_change_the_tokens(
    measured: Any, plain: Engine, pair: Pair, agent: Any, prompts: list[list[int]]
) -> None:
    prompt = prompts[0]
    right = _ask(plain, prompt)["tokens"]
    spec = cached_blocks.namespaces(agent.admin_address)[0]
    hashes = cached_blocks.block_hashes(prompt)
    blocks = cached_blocks.read(agent.address, spec, hashes)
    blocks[3] = blocks[40]
    cached_blocks.replace(agent.address, agent.admin_address, spec, hashes, blocks)
    pair[1].reset()
    assert _ask(pair[1], prompt)["tokens"] != right


@pytest.mark.full
def test_the_example_connector_beside_it(
    llama: Path, directory: Path, plain: Engine, prompts: list[list[int]], figures: Figures
) -> None:
    transfer = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(directory / "example")},
    }
    hits = []
    whole = 8192  # it cannot load what was computed in chunks
    with Engine(llama, directory / "example.log", transfer, max_num_batched_tokens=whole) as engine:
        engine.wait()
        for prompt in prompts[:3]:
            _ask(engine, prompt)
        for prompt in prompts[:3]:
            engine.reset()
            hits.append(_ask(engine, prompt)["first_seconds"])
    figures.add_seconds("ExampleConnector", hits)

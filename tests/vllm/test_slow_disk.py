"""A DISK that is slower than the engine: requests take no longer than without it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing.slow_agent import SlowAgentProcess
from tests.faults.waiting import wait_until
from tests.vllm import cached_blocks
from tests.vllm.conftest import SETTINGS
from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures

pytestmark = pytest.mark.full

PAIRS = 8
PROMPT_TOKENS = 2048
MOST = 1.05


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowAgentProcess]:
    disk = tmp_path_factory.mktemp("disk")
    with SlowAgentProcess(settings={**SETTINGS, "tiers.disk.paths": disk}) as agent:
        yield agent


@pytest.fixture(scope="module")
def engine(llama: Path, directory: Path, agent: SlowAgentProcess) -> Iterator[Engine]:
    with Engine(llama, directory / "slow.log", connector(agent.address)) as engine:
        yield engine.wait()


@pytest.fixture(scope="module")
def prompts(make_prompt: Callable[[int], list[int]]) -> list[list[int]]:
    return [make_prompt(PROMPT_TOKENS) for _ in range(PAIRS)]


@pytest.fixture(scope="module")
def stored(engine: Engine, agent: SlowAgentProcess, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine answers to each prompt; all are on DISK."""
    answers = [_ask(engine, prompt)["tokens"] for prompt in prompts]
    spec = cached_blocks.namespaces(agent.admin_address)[0]
    for prompt in prompts:
        hashes = cached_blocks.block_hashes(prompt)
        wait_until(
            lambda hashes=hashes: (  # type: ignore[misc]
                cached_blocks.stored_blocks(agent.address, spec, hashes) == len(hashes)
            ),
            20.0,
            0.1,
        )
    with AdminClient(agent.admin_address, timeout_seconds=60.0) as admin:
        admin.flush()
    return answers


def _ask(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    answer: dict[str, Any] = engine.generate({"prompt": prompt, "max_tokens": 16})["answers"][0]
    assert not answer["failure"]
    return answer


def _leave_on_disk(engine: Engine, agent: SlowAgentProcess) -> None:
    engine.reset()
    with AdminClient(agent.admin_address) as admin:
        label = cached_blocks.namespaces(agent.admin_address)[0].label
        admin.evict_blocks(label, tiers=[Tier.HOST])


@pytest.mark.parametrize(
    "pace", [{"bytes_per_second": 1e6}, {"latency_seconds": 1.0}], ids=["1 MB/s", "1 s"]
)
def test_first_tokens_come_as_soon_as_without(
    engine: Engine,
    plain: Engine,
    agent: SlowAgentProcess,
    prompts: list[list[int]],
    stored: list[list[int]],
    pace: dict[str, float],
    figures: Figures,
) -> None:
    """Pairs of the same prompt, in turns first."""
    agent.slow_down(**pace)
    ratios = []
    try:
        for number, (prompt, right) in enumerate(zip(prompts, stored, strict=True)):
            _leave_on_disk(engine, agent)
            plain.reset()
            took = {}
            for one in (engine, plain) if number % 2 else (plain, engine):
                answer = _ask(one, prompt)
                assert answer["tokens"] == right
                took[one] = answer["first_seconds"]
            ratios.append(took[engine] / took[plain])
    finally:
        agent.heal()
    ratio = statistics.median(ratios)
    figures.add_ratio(f"DISK slowed to {pace}: first token / without kvtier", ratio, MOST)
    assert ratio <= MOST


def test_a_disk_that_is_fast_again_is_used_again(
    engine: Engine, agent: SlowAgentProcess, prompts: list[list[int]], stored: list[list[int]]
) -> None:
    agent.heal()
    before = _disk_hits(engine)

    def hits() -> bool:
        _leave_on_disk(engine, agent)
        assert _ask(engine, prompts[0])["tokens"] == stored[0]
        return _disk_hits(engine) > before

    wait_until(hits, 60.0, 0.5)


def _disk_hits(engine: Engine) -> float:
    return engine.metrics().get('vllm:kvtier_hit_blocks_total{tier="disk"}', 0.0)

"""A prompt that was computed on another node: from CLUSTER, with the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.redis_servers import RedisServer
from tests.faults.waiting import wait_until
from tests.vllm import cached_blocks
from tests.vllm.conftest import SETTINGS
from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures

pytestmark = pytest.mark.full

_PROMPT_TOKENS = 4096
_REPETITIONS = 5
_HIT_TOKENS = (_PROMPT_TOKENS - 1) // 32 * 32


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(policy="allkeys-lru", maxmemory_bytes=4 << 30) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[AgentProcess, AgentProcess]]:
    """Two agents that have nothing in common but the server."""

    def settings(name: str) -> dict[str, object]:
        return {
            **SETTINGS,
            "tiers.disk.paths": tmp_path_factory.mktemp(name),
            "tiers.cluster.url": server.url,
        }

    with (
        AgentProcess(settings=settings("one")) as one,
        AgentProcess(settings=settings("two")) as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def engines(
    llama: Path, directory: Path, nodes: tuple[AgentProcess, AgentProcess]
) -> Iterator[tuple[Engine, Engine]]:
    one, two = (connector(node.address) for node in nodes)
    with (
        Engine(llama, directory / "cluster-a.log", one) as first,
        Engine(llama, directory / "cluster-b.log", two) as second,
    ):
        yield first.wait(), second.wait()


def _ask(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    answer: dict[str, Any] = engine.generate({"prompt": prompt, "max_tokens": 16})["answers"][0]
    assert not answer["failure"]
    return answer


def _write_all(node: AgentProcess, prompt: list[int]) -> None:
    """Everything of a prompt is in CLUSTER, and nothing is written any more."""
    [spec] = cached_blocks.namespaces(node.admin_address)
    hashes = cached_blocks.block_hashes(prompt)
    wait_until(
        lambda: cached_blocks.stored_blocks(node.address, spec, hashes) == len(hashes), 10.0, 0.1
    )
    with AdminClient(node.admin_address) as admin:
        admin.flush(Tier.CLUSTER)
        admin.flush(Tier.DISK)


def test_another_node_has_computed_it(
    plain: Engine,
    engines: tuple[Engine, Engine],
    nodes: tuple[AgentProcess, AgentProcess],
    make_prompt: Callable[[int], list[int]],
    figures: Figures,
) -> None:
    first, second = engines
    cold, own, cluster = [], [], []
    _ask(second, make_prompt(_PROMPT_TOKENS))  # from now on it knows how fast it computes
    for _ in range(_REPETITIONS):
        prompt = make_prompt(_PROMPT_TOKENS)
        right = _ask(plain, prompt)["tokens"]
        computed = _ask(first, prompt)
        _write_all(nodes[0], prompt)
        for engine in (plain, first, second):  # the others would not be on its processors
            engine.wait_idle()
        fetched, again = _ask(second, prompt), _ask(second, prompt)
        assert [each["tokens"] for each in (computed, fetched, again)] == [right] * 3
        cold.append(computed["first_seconds"])
        cluster.append(fetched["first_seconds"])
        own.append(again["first_seconds"])
    hits = second.metrics()['vllm:kvtier_hit_tokens_total{tier="cluster"}']
    assert hits == _REPETITIONS * _HIT_TOKENS
    middle = figures.add_seconds("kvtier CLUSTER", cluster)
    limits = {
        "CLUSTER / own": (middle / figures.add_seconds("own, on node two", own), 3.0),
        "CLUSTER / cold": (middle / figures.add_seconds("cold, on node one", cold), 0.06),
    }
    for name, (ratio, most) in limits.items():
        figures.add_ratio(name, ratio, most)
    assert not [name for name, (ratio, most) in limits.items() if ratio > most]

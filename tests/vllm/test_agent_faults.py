"""The agent is away, dies, hangs, or finds its disk damaged: requests never notice but in time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.client.admin import AdminClient
from kvtier.testing.agent_process import AgentProcess
from tests.faults.waiting import wait_until
from tests.vllm import cached_blocks
from tests.vllm.conftest import SETTINGS
from tests.vllm.engine import Engine, connector
from tests.vllm.figures import Figures
from tests.vllm.repetitions import either

PROMPT_TOKENS = either(1500, 700)
#: The connector's default for a lookup, and what an engine needs beside.
LOOKUP_SECONDS = 0.25

Right = list[list[int]]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """Not started yet."""
    directory = tmp_path_factory.mktemp("agent")
    disk = tmp_path_factory.mktemp("disk")
    agent = AgentProcess(directory, {**SETTINGS, "tiers.disk.paths": disk})
    yield agent
    agent.kill()


@pytest.fixture(scope="module")
def engine(llama: Path, directory: Path, agent: AgentProcess) -> Iterator[Engine]:
    """Started before the agent."""
    with Engine(llama, directory / "faults.log", connector(agent.address)) as engine:
        yield engine.wait()


@pytest.fixture(scope="module")
def prompts(make_prompt: Callable[[int], list[int]]) -> list[list[int]]:
    return [make_prompt(PROMPT_TOKENS) for _ in range(4)]


@pytest.fixture(scope="module")
def right(plain: Engine, prompts: list[list[int]]) -> Right:
    return [_ask(plain, [prompt])[0]["tokens"] for prompt in prompts]


def _ask(engine: Engine, prompts: list[list[int]]) -> list[dict[str, Any]]:
    answers = engine.generate(*({"prompt": prompt, "max_tokens": 16} for prompt in prompts))
    found: list[dict[str, Any]] = answers["answers"]
    assert not [answer["failure"] for answer in found if answer["failure"]]
    return found


def _tokens(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def _hits(engine: Engine) -> float:
    found = engine.metrics()
    return sum(v for name, v in found.items() if name.startswith("vllm:kvtier_hit_blocks_total"))


def _stored(agent: AgentProcess, prompts: list[list[int]]) -> bool:
    specs = cached_blocks.namespaces(agent.admin_address)
    wanted = [cached_blocks.block_hashes(prompt) for prompt in prompts]
    return bool(specs) and all(
        cached_blocks.stored_blocks(agent.address, specs[0], hashes) == len(hashes)
        for hashes in wanted
    )


def _store_again(engine: Engine, agent: AgentProcess, prompts: list[list[int]]) -> None:
    """Until the engine has attached again, and what it computes is stored."""

    def ask_once() -> bool:
        engine.reset()
        _ask(engine, prompts)
        return _stored(agent, prompts)

    wait_until(ask_once, 60.0, 0.5)


def test_it_starts_without_an_agent_and_hits_when_one_comes(
    engine: Engine, agent: AgentProcess, prompts: list[list[int]], right: Right
) -> None:
    assert _tokens(_ask(engine, prompts[:1])) == right[:1]
    agent.start()
    _store_again(engine, agent, prompts)
    before = _hits(engine)
    engine.reset()
    assert _tokens([_ask(engine, [prompt])[0] for prompt in prompts]) == right
    assert _hits(engine) == before + len(prompts) * (PROMPT_TOKENS // 32)


@pytest.mark.full
def test_a_stopped_agent_costs_one_lookup(
    engine: Engine,
    agent: AgentProcess,
    prompts: list[list[int]],
    right: Right,
    plain: Engine,
    figures: Figures,
) -> None:
    short = [prompt[:256] for prompt in prompts] * 2
    wanted = [_ask(plain, [prompt])[0]["tokens"] for prompt in short[:4]] * 2
    engine.reset()
    waited = engine.metrics()["vllm:kvtier_lookup_seconds_total"]
    agent.pause()
    try:
        for prompt, tokens in zip(short, wanted, strict=True):
            assert _tokens(_ask(engine, [prompt])) == [tokens]
            engine.reset()
    finally:
        agent.resume()
    waited = engine.metrics()["vllm:kvtier_lookup_seconds_total"] - waited
    figures.add("agent stopped: scheduler waited for 8 lookups", f"{waited:.3f} s", "at most 0.3 s")
    assert LOOKUP_SECONDS * 0.9 < waited <= LOOKUP_SECONDS + 0.05
    before = _hits(engine)

    def hits_again() -> bool:
        engine.reset()
        assert _tokens(_ask(engine, prompts[:1])) == right[:1]
        return _hits(engine) > before

    wait_until(hits_again, 30.0, 0.2)


@pytest.mark.parametrize("what", ["loads", pytest.param("stores", marks=pytest.mark.full)])
def test_an_agent_killed_meanwhile(
    engine: Engine,
    agent: AgentProcess,
    prompts: list[list[int]],
    right: Right,
    make_prompt: Callable[[int], list[int]],
    plain: Engine,
    what: str,
) -> None:
    source = random.Random(what)
    for _ in range(either(4, 1)):
        _store_again(engine, agent, prompts[:2])
        engine.reset()
        asked = prompts if what == "loads" else [make_prompt(700) for _ in range(3)]
        wanted = (
            right if what == "loads" else [_ask(plain, [prompt])[0]["tokens"] for prompt in asked]
        )
        engine.start_generating(*({"prompt": prompt, "max_tokens": 16} for prompt in asked))
        time.sleep(source.uniform(0.0, 0.08 if what == "loads" else 1.5))
        agent.kill()
        answers = engine.answer()["answers"]
        assert not [answer["failure"] for answer in answers if answer["failure"]]
        assert _tokens(answers) == wanted
        agent.start()
    before = _hits(engine)
    _store_again(engine, agent, prompts)
    engine.reset()
    assert _tokens([_ask(engine, [prompt])[0] for prompt in prompts]) == right
    assert _hits(engine) > before


@pytest.mark.full
def test_damaged_blocks_on_disk_are_computed(
    engine: Engine, agent: AgentProcess, prompts: list[list[int]], right: Right
) -> None:
    _store_again(engine, agent, prompts)
    with AdminClient(agent.admin_address) as admin:
        admin.flush()
    agent.stop()
    disk = Path(str(agent.settings["tiers.disk.paths"]))
    slabs = [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    assert slabs
    source = random.Random(5)
    for path in slabs:
        with path.open("r+b") as file:
            size = path.stat().st_size
            for _ in range(40):
                file.seek(source.randrange(1 << 20, size))
                file.write(source.randbytes(64))
    agent.start()
    _wait_until_attached(agent)
    engine.reset()
    assert _tokens([_ask(engine, [prompt])[0] for prompt in prompts]) == right
    engine.reset()
    assert _tokens(_ask(engine, prompts)) == right


def _wait_until_attached(agent: AgentProcess) -> None:
    """Clients ask for an agent that is back at least once a second."""
    time.sleep(1.5)

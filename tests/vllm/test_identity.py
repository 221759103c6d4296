"""Only what is equal in every respect is shared: salts, adapters, pipelines, latent vectors."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.client.client import Client
from tests.vllm import cached_blocks
from tests.vllm.engine import Engine, connector
from tests.vllm.relay import Relay

pytestmark = pytest.mark.full

PROMPT_TOKENS = 600
HIT_TOKENS = (PROMPT_TOKENS - 1) // 32 * 32
HERE = Path(__file__).parent


def _make(script: str, *arguments: object) -> None:
    """A process of its own, so that torch stays out of this one."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def _ask(engine: Engine, prompt: list[int], **request: Any) -> tuple[list[int], float]:
    """The answer, and how many tokens of the prompt came from the agent; the engine's own prefix
    cache is empty before."""
    engine.reset()
    before = _hits(engine)
    answer = engine.generate({"prompt": prompt, "max_tokens": 16, **request})["answers"][0]
    assert not answer["failure"]
    return answer["tokens"], _hits(engine) - before


def _hits(engine: Engine) -> float:
    return engine.metrics().get('vllm:kvtier_hit_tokens_total{tier="host"}', 0.0)


def _is_stored(agent: Any, prompt: list[int]) -> bool:
    """Whether all ranks of the pipeline have stored what can be hit of a prompt."""
    names = cached_blocks.block_hashes(prompt)[: HIT_TOKENS // cached_blocks.BLOCK_TOKENS]
    (spec,) = [s for s in cached_blocks.namespaces(agent.admin_address) if s.name == "pipeline"]
    with Client(agent.address, timeout_seconds=10.0) as client:
        found = client.namespace(spec).lookup(names, shards=range(spec.shards))
    return found.matched == len(names)


@pytest.fixture(scope="module")
def relay(agent: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with Relay(agent.directory, tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.fixture(scope="module")
def adapters(llama: Path, directory: Path) -> list[Path]:
    """Two for one model, which change what it says."""
    paths = [directory / f"adapter-{seed}" for seed in (1, 2)]
    for seed, path in enumerate(paths, 1):
        _make("make_adapter.py", llama, path, seed)
    return paths


@pytest.fixture(scope="module")
def engines(llama: Path, directory: Path, relay: Relay) -> Iterator[tuple[Engine, Engine]]:
    """What they say to the agent is seen."""
    transfer = connector(relay.address)
    settings: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with (
        Engine(llama, directory / "identity-a.log", transfer, **settings) as first,
        Engine(llama, directory / "identity-b.log", transfer, **settings) as second,
    ):
        yield first.wait(), second.wait()


def test_only_equal_salts_share(
    engines: tuple[Engine, Engine], make_prompt: Callable[[int], list[int]], relay: Relay
) -> None:
    first, second = engines
    prompt = make_prompt(PROMPT_TOKENS)
    salts = [f"salt {secrets.token_hex(16)}" for _ in range(2)]
    right, hits = _ask(first, prompt, salt=salts[0])
    assert hits == 0
    assert _ask(second, prompt, salt=salts[1]) == (right, 0)
    assert _ask(second, prompt) == (right, 0)
    for engine in engines:
        for salt in salts:
            assert _ask(engine, prompt, salt=salt) == (right, HIT_TOKENS)
    # What was sent names the blocks, and says nothing of the salts themselves.
    for salt in salts:
        assert cached_blocks.block_hashes(prompt, extra=(("cache_salt", salt),))[0] in relay.sent
        for text in (salt, salt.removeprefix("salt ")):
            assert text.encode() not in relay.sent
        assert bytes.fromhex(salt.removeprefix("salt ")) not in relay.sent


def test_adapters_share_with_themselves_alone(
    engines: tuple[Engine, Engine], make_prompt: Callable[[int], list[int]], adapters: list[Path]
) -> None:
    first, second = engines
    prompt = make_prompt(PROMPT_TOKENS)
    asked: list[dict[str, Any]] = [{}]
    asked += [{"adapter": [path.name, n, str(path)]} for n, path in enumerate(adapters, 1)]
    right = []
    for request in asked:
        tokens, hits = _ask(first, prompt, **request)
        assert hits == 0
        right.append(tokens)
    assert len(set(map(tuple, right))) == 3
    for engine in (second, first):
        for request, tokens in zip(asked, right, strict=True):
            assert _ask(engine, prompt, **request) == (tokens, HIT_TOKENS)


def test_two_pipeline_parallel_engines_share(
    llama: Path, directory: Path, agent: Any, make_prompt: Callable[[int], list[int]]
) -> None:
    prompt = make_prompt(PROMPT_TOKENS)
    answers = []
    for name in ("pp-a", "pp-b"):  # one after the other: each has two ranks on two cores
        with Engine(
            llama,
            directory / f"{name}.log",
            connector(agent.address, namespace="pipeline"),
            environ={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
            pipeline_parallel_size=2,
            distributed_executor_backend="mp",
            enforce_eager=False,  # with it, the CPU backend forgets to make the second rank's input
        ) as engine:
            engine.wait()
            answers.append(_ask(engine, prompt))
            # A rank drops a store when a busy machine keeps the agent from answering.
            while not _is_stored(agent, prompt):
                assert _ask(engine, prompt)[0] == answers[0][0]
            answers.append(_ask(engine, prompt))
    (spec,) = [s for s in cached_blocks.namespaces(agent.admin_address) if s.name == "pipeline"]
    assert spec.shards == 2
    tokens = answers[0][0]
    assert answers == [(tokens, 0)] + 3 * [(tokens, HIT_TOKENS)]


def test_without_prefix_caching_nothing_is_loaded(
    directory: Path, agent: Any, make_prompt: Callable[[int], list[int]]
) -> None:
    """vLLM turns it off for latent attention on CPUs, which cannot go on after a prefix."""
    model = directory / "deepseek"
    _make("make_deepseek.py", model)
    prompt = make_prompt(PROMPT_TOKENS)
    transfer = connector(agent.address, namespace="latent")
    with Engine(model, directory / "mla.log", transfer, skip_tokenizer_init=True) as engine:
        engine.wait()
        answers = [_ask(engine, prompt) for _ in range(2)]
        assert "prefix caching is off" in engine.log.read_text()
    tokens, _ = answers[0]
    assert answers == [(tokens, 0), (tokens, 0)]

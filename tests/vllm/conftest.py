"""Fixtures of the suite that runs vLLM; without vLLM nothing of it is collected."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.figures import Figures
from tests.vllm.repetitions import QUICK

if find_spec("vllm") is None:
    collect_ignore_glob = ["*"]
else:
    from tests.vllm.engine import Engine, connector

FIGURES = Figures()

SETTINGS: dict[str, object] = {"tiers.host.capacity": "3GiB", "tiers.disk.capacity": "4GiB"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: left out with QUICK=1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm" in str(item.path):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))
    left_out = [item for item in items if QUICK and item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = FIGURES.lines()
    if lines:
        terminalreporter.section("vLLM")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def llama(directory: Path) -> Path:
    """12 layers, 133 M parameters; made by a process of its own, torch stays out of this one."""
    import subprocess
    import sys

    path = directory / "llama"
    script = Path(__file__).parents[2] / "examples" / "vllm" / "make_model.py"
    subprocess.run([sys.executable, str(script), str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> None:
    """In place of the check of other tests: engines live longer than a test, and make and remove
    shared memory while they do. They are ended, with all their processes, by their fixtures."""


@pytest.fixture(scope="session")
def figures() -> Figures:
    """The table that is shown at the end."""
    return FIGURES


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An agent with HOST and DISK; blocks are on both soon after they are stored."""
    from kvtier.testing.agent_process import AgentProcess

    disk = tmp_path_factory.mktemp("disk")
    with AgentProcess(settings={**SETTINGS, "tiers.disk.paths": disk}) as running:
        yield running


@pytest.fixture(scope="session")
def make_prompt() -> Callable[[int], list[int]]:
    """Prompts that begin differently, of so many tokens; each call makes another one."""
    source = random.Random(4)

    def make(tokens: int) -> list[int]:
        return [source.randrange(256) for _ in range(tokens)]

    return make


@pytest.fixture(scope="session")
def plain(llama: Path, directory: Path) -> Iterator[Engine]:
    """An engine without a connector: what it says is right."""
    with Engine(llama, directory / "plain.log") as engine:
        yield engine.wait()


@pytest.fixture(scope="module")
def pair(
    llama: Path, directory: Path, agent: Any, request: pytest.FixtureRequest
) -> Iterator[tuple[Engine, Engine]]:
    """Two engines behind one agent."""
    name = request.module.__name__.rpartition(".")[2]
    transfer = connector(agent.address)
    with (
        Engine(llama, directory / f"{name}-a.log", transfer) as first,
        Engine(llama, directory / f"{name}-b.log", transfer) as second,
    ):
        yield first.wait(), second.wait()

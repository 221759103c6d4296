"""The wheel and the source archive, in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.command_lines import DEPLOY
from tests.faults.waiting import wait_until

TOP = DEPLOY.parent
PROTOS = sorted(path.name for path in (TOP / "proto" / "kvtier" / "v1").glob("*.proto"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, built from the source archive, and that one."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", directory, TOP],
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel], [source] = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with kvtier and what it requires."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=True)
    subprocess.run(
        [directory / "bin/pip", "install", "-q", "-c", TOP / "constraints.txt", archives[0]],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return directory


@pytest.fixture
def agent(installed: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of commands that find a running one."""
    environment = {
        "PATH": f"{installed / 'bin'}:{os.environ['PATH']}",
        "KVTIER_SOCKET_DIR": str(tmp_path / "sockets"),
        "KVTIER_TIERS__HOST__CAPACITY": "16MiB",
    }
    process = subprocess.Popen(
        [installed / "bin/kvtier", "agent"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        wait_until((tmp_path / "sockets" / "admin.sock").is_socket, 30.0)
        yield environment
        process.terminate()
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.communicate()


def test_the_source_archive_has_everything(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in PROTOS:
        assert f"proto/kvtier/v1/{name}" in names
    for name in ("configs/agent.yaml", "constraints.txt", "CHANGELOG.md", "README.md", "LICENSE"):
        assert name in names
    assert not any(name.endswith(".pyc") for name in names)


def test_the_wheel_brings_the_protos(installed: Path) -> None:
    shared = installed / "share" / "kvtier"
    assert sorted(path.name for path in (shared / "proto/kvtier/v1").iterdir()) == PROTOS
    assert (shared / "agent.yaml").read_text() == (TOP / "configs/agent.yaml").read_text()


def test_an_agent_and_its_commands_run_from_it(agent: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["kvtier", "stats", "--json"],
        env=agent,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["version"] == "0.1.0"

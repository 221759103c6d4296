"""The wheel and the source archive, in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.command_lines import DEPLOY
from tests.faults.waiting import wait_until

TOP = DEPLOY.parent
PROTOS = sorted(path.name for path in (TOP / "proto" / "kvtier" / "v1").glob("*.proto"))


def test_what_is_built_is_whole_and_runs(tmp_path: Path) -> None:
    """In one test: building and installing take long."""
    wheel, source = _built(tmp_path / "dist")
    _has_everything(source)
    environment = _installed(wheel, tmp_path / "environment")
    _brings_its_files(environment)
    with _agent(environment, tmp_path) as variables:
        done = subprocess.run(
            ["kvtier", "stats", "--json"],
            env=variables,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert json.loads(done.stdout)["version"] == "0.1.0"


def _built(directory: Path) -> tuple[Path, Path]:
    """The wheel, built from the source archive, and that one."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", directory, TOP],
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel], [source] = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, source


def _has_everything(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in PROTOS:
        assert f"proto/kvtier/v1/{name}" in names
    for name in ("configs/agent.yaml", "constraints.txt", "CHANGELOG.md", "README.md", "LICENSE"):
        assert name in names
    assert not any(name.endswith(".pyc") for name in names)


def _installed(wheel: Path, directory: Path) -> Path:
    """An environment with kvtier and what it requires."""
    venv.create(directory, with_pip=True)
    subprocess.run(
        [directory / "bin/pip", "install", "-q", "-c", TOP / "constraints.txt", wheel],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return directory


def _brings_its_files(environment: Path) -> None:
    shared = environment / "share" / "kvtier"
    assert sorted(path.name for path in (shared / "proto/kvtier/v1").iterdir()) == PROTOS
    assert (shared / "agent.yaml").read_text() == (TOP / "configs/agent.yaml").read_text()


@contextmanager
def _agent(environment: Path, directory: Path) -> Iterator[dict[str, str]]:
    """The variables of commands that find a running one."""
    variables = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "KVTIER_SOCKET_DIR": str(directory / "sockets"),
        "KVTIER_TIERS__HOST__CAPACITY": "16MiB",
    }
    process = subprocess.Popen(
        [environment / "bin/kvtier", "agent"], env=variables, cwd=directory, stderr=subprocess.PIPE
    )
    try:
        wait_until((directory / "sockets" / "admin.sock").is_socket, 30.0)
        yield variables
        process.terminate()
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.communicate()

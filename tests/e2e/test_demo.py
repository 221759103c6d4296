"""`kvtier demo`, as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_DEADLINE_SECONDS = 240.0


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "kvtier", "demo", *options]


def _environ(directory: Path) -> dict[str, str]:
    """Temporary files go to `directory`, so that what is left behind can be seen."""
    return os.environ | {"TMPDIR": str(directory), "COLUMNS": "200"}


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: sockets lie below it."""
    return tmp_path_factory.mktemp("d")


def test_three_workers_share_a_prefix(directory: Path) -> None:
    done = subprocess.run(
        _command("--tokens", "600"),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_SECONDS,
        env=_environ(directory),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    rows = {line[:30].strip(): line[30:].split() for line in lines}
    assert rows["same tokens"] == ["yes", "yes", "yes"]
    assert rows["of it from the cache"] == ["0", "576", "576"]
    assert rows["hits in HOST, blocks"] == ["0", "9", "9"]
    assert rows["prompt, tokens"] == ["600", "600", "699"]
    assert lines[-1] == "All 72 generated tokens are those of a run without kvtier."
    assert not list(directory.iterdir())


def test_a_model_that_does_not_exist_is_named(directory: Path) -> None:
    done = subprocess.run(
        _command("--tokens", "64", "--model", str(directory / "nothing-here")),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_SECONDS,
        env=_environ(directory),
    )
    assert done.returncode == 1
    failure = done.stdout[done.stdout.index("kvtier demo failed") :]
    assert failure.startswith("kvtier demo failed: worker 1 ended with status 1")
    assert "nothing-here" in failure
    assert not list(directory.iterdir())


def test_an_interrupt_leaves_nothing_behind(directory: Path) -> None:
    process = subprocess.Popen(
        _command("--tokens", "600"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environ(directory) | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if "worker 1" in line:
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, _ = process.communicate(timeout=_DEADLINE_SECONDS)
    assert process.returncode not in (0, None), output
    assert "Traceback" not in output
    assert not list(directory.iterdir())
    assert not _processes_of(process.pid)


def _processes_of(session: int) -> list[str]:
    """What runs in a session, an agent and workers included."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = each.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields.split()[3]) == session:
            found.append(name)
    return found

"""A worker in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from kvtier.demo.exchange import Outcome, Task

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
_TAIL_LINES = 12


class WorkerFailedError(Exception):
    """A worker ended without an outcome; the message has what it wrote last to stderr."""


def run_worker(task: Task, directory: Path, on_step: Callable[[str], None]) -> Outcome:
    """Starts a worker, passes on what it says it is doing, and waits for its outcome.

    Its stderr goes to a file in `directory`. Raises WorkerFailedError. However this ends, the
    process is gone then.
    """
    path = directory / f"{task.worker.replace(' ', '-')}.err"
    environ = os.environ | _QUIET | ({"HF_HUB_OFFLINE": "1"} if task.is_made else {})
    environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory / "inductor")  # else it stays in /tmp
    command = [sys.executable, "-m", "kvtier.demo.worker"]
    with (
        path.open("wb") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            text=True,
        ) as process,
    ):
        try:
            outcome = _converse(process, task, on_step)
            status = process.wait()
        finally:
            process.kill()
    if outcome is None or status != 0:
        last = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        raise WorkerFailedError(
            "\n".join([f"{task.worker} ended with status {status}; it wrote last:", *last])
        )
    return outcome


def _converse(
    process: subprocess.Popen[str], task: Task, on_step: Callable[[str], None]
) -> Outcome | None:
    assert process.stdin is not None
    assert process.stdout is not None
    on_step("starting")
    try:
        process.stdin.write(json.dumps(asdict(task)))
        process.stdin.close()
    except BrokenPipeError:
        return None
    outcome = None
    for line in process.stdout:
        report = json.loads(line)
        if "doing" in report:
            on_step(report["doing"])
        else:
            fields = report["outcome"]
            tokens = {name: tuple(fields[name]) for name in ("answer", "reference")}
            outcome = Outcome(**fields | tokens)
    return outcome

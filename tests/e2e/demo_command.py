"""`kvtier demo` as a user runs it, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEADLINE_SECONDS = 240.0


@dataclass(frozen=True)
class Demo:
    """Runs it. Temporary files go to `directory`, so that what is left behind can be seen."""

    directory: Path

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run_python("-m", "kvtier", "demo", *options)

    def run_python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=self._environ(),
        )

    def disturb(
        self, at: str, how: Callable[[subprocess.Popen[str]], None], *options: str
    ) -> tuple[int, str]:
        """Does that when a line says `at`; the exit status and the output from there on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "kvtier", "demo", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environ() | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                if at in line:
                    break
            how(process)
            output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, output

    def _environ(self) -> dict[str, str]:
        return os.environ | {"TMPDIR": str(self.directory), "COLUMNS": "200"}

    def remains(self) -> list[str]:
        """Files, and processes that were told of the directory: agents and servers."""
        found = [str(each) for each in self.directory.iterdir()]
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = each.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(self.directory) in command:
                found.append(command.decode().replace("\0", " "))
        return found


def interrupt(process: subprocess.Popen[str]) -> None:
    """As a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


def session_of(process_id: int) -> list[str]:
    """What runs in a session, an agent and workers included."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = each.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields.split()[3]) == process_id:
            found.append(name)
    return found


def rows_of(output: str) -> dict[str, list[str]]:
    """The table's cells, by the first of each row."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {name: cells for name, *cells in rows}

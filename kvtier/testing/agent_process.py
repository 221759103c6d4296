"""A real agent in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from kvtier.client.admin import AdminClient
from kvtier.errors import AgentUnavailableError, DeadlineExceededError
from kvtier.sockets import ADMIN_SOCKET, WORKER_SOCKET

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


class AgentProcess:
    """Runs `kvtier agent` in a directory; a context manager that leaves nothing behind.

    `settings` are configuration keys, as for `--set`; without `metrics.address` it takes no port.
    Its log goes to `agent.log` in the directory,
    which is a new temporary one unless given. `cpu` pins it to one processor.
    """

    #: What its interpreter runs, before the settings.
    command: Sequence[str] = ("-m", "kvtier", "agent")

    def __init__(
        self,
        directory: Path | None = None,
        settings: Mapping[str, object] | None = None,
        *,
        cpu: int | None = None,
    ) -> None:
        self._temporary = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="kvtier-")
            directory = Path(self._temporary.name)
        self.directory = directory
        self.settings = dict(settings or {})
        self._cpu = cpu
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """For workers."""
        return f"unix:{self.directory / WORKER_SOCKET}"

    @property
    def admin_address(self) -> str:
        """For operators."""
        return f"unix:{self.directory / ADMIN_SOCKET}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the agent is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged, over all its starts."""
        return (self.directory / "agent.log").read_text()

    def start(self) -> None:
        """Returns when it serves; raises RuntimeError with its log if it does not."""
        command = [sys.executable, *self.command]
        own = {"socket_dir": self.directory, "metrics.address": "null"}
        for key, value in (own | self.settings).items():
            command += ["--set", f"{key}={value}"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KVTIER_")}
        with (self.directory / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
            )
        if self._cpu is not None:
            os.sched_setaffinity(self._process.pid, {self._cpu})
        self._wait_until_serving()

    def _wait_until_serving(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if (self.directory / ADMIN_SOCKET).exists():
                try:
                    with AdminClient(self.admin_address, timeout_seconds=1.0) as admin:
                        admin.get_stats()
                    if self._process.poll() is None:
                        return
                except (AgentUnavailableError, DeadlineExceededError):
                    pass
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the agent does not serve; its log says:\n{self.log}")

    def stop(self) -> int:
        """Asks it to stop (SIGTERM), waits, and returns its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it (SIGKILL) and waits for its end."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: int) -> int:
        process = self._process
        if process is None:
            return 0
        try:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            return process.wait(_STOP_SECONDS)
        except BaseException:  # it took too long, or the caller was interrupted
            process.kill()
            process.wait()
            raise
        finally:
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            self._clean_up()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._clean_up()

    def _clean_up(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

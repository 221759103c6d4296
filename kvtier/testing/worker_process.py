"""A real worker in a process of its own, which follows a script."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from io import RawIOBase
from typing import IO, Any

_HEAR_SECONDS = 20.0


class Pipe:
    """The script's end: one JSON value per line, each way."""

    def __init__(self, incoming: RawIOBase, outgoing: IO[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def say(self, value: Any = None) -> None:
        """Tells the parent."""
        self._outgoing.write(json.dumps(value).encode() + b"\n")
        self._outgoing.flush()

    def hear(self) -> Any:
        """Waits for the parent. Raises EOFError when it has closed its end."""
        line = self._incoming.readline()
        if not line:
            raise EOFError("the parent has nothing more to say")
        return json.loads(line)

    def is_quiet(self) -> bool:
        """Whether `hear` would wait."""
        return not select.select([self._incoming], [], [], 0)[0]


Script = Callable[..., None]


class WorkerProcess:
    """Runs `script(pipe, *arguments)` in a fresh interpreter; a context manager that kills it.

    The script is a function of a module; its arguments are JSON values. `say` and `hear` talk to
    its `Pipe`.
    """

    def __init__(self, script: Script, *arguments: Any) -> None:
        self._received = b""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kvtier.testing.worker_process"),
                f"{script.__module__}:{script.__qualname__}",
                json.dumps(arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, value: Any = None) -> None:
        """Tells the script; nothing happens if it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def hear(self, deadline_seconds: float = _HEAR_SECONDS) -> Any:
        """The script's next value. Raises RuntimeError if it ended, TimeoutError if silent."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + deadline_seconds
        while b"\n" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"worker {self.pid} said nothing for {deadline_seconds} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise RuntimeError(f"worker {self.pid} ended with {self._process.wait()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def ask(self, value: Any = None, deadline_seconds: float = _HEAR_SECONDS) -> Any:
        """Says something and hears the answer."""
        self.say(value)
        return self.hear(deadline_seconds)

    def pause(self) -> None:
        """SIGSTOP; returns when all its threads stand still."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, without waiting for its end."""
        self._process.kill()

    def wait(self, deadline_seconds: float = _HEAR_SECONDS) -> int:
        """Its exit status, after closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(deadline_seconds)

    def close(self) -> None:
        """Kills it if it lives, and leaves nothing behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def main() -> None:
    """What the worker's interpreter runs: MODULE:FUNCTION and its arguments as JSON."""
    module, _, name = sys.argv[1].partition(":")
    script: Script = getattr(import_module(module), name)
    with open(0, "rb", buffering=0, closefd=False) as incoming:
        script(Pipe(incoming, sys.stdout.buffer), *json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()

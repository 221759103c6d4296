"""A real agent in a process of its own, whose DISK can be slow, or fail, while it runs.

python -m kvtier.testing.slow_agent --set KEY=VALUE ...
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from kvtier.config import load_config
from kvtier.daemon import run
from kvtier.memory import ByteArray
from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.faulty_io import Fault, FaultyIO

_FILE = "disk-pace.json"


class SlowAgentProcess(AgentProcess):
    """As `AgentProcess`; what its DISK is told holds for calls that begin later."""

    command = ("-m", "kvtier.testing.slow_agent")

    def slow_down(self, *, latency_seconds: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """As `FaultyIO.slow_down`."""
        pace = {"latency_seconds": latency_seconds, "bytes_per_second": bytes_per_second}
        self._write({"pace": pace})

    def fail(self, rates: Mapping[Fault, float]) -> None:
        """As `FaultyIO.set_rates`."""
        self._write({"rates": {fault.value: rate for fault, rate in rates.items()}})

    def heal(self) -> None:
        """As fast as it is."""
        self._write({})

    def _write(self, told: dict[str, dict[str, float]]) -> None:
        new = self.directory / f"{_FILE}.new"
        new.write_text(json.dumps(told))
        new.rename(self.directory / _FILE)


class PacedIO(FaultyIO):
    """As fast, and as good, as a file says, which is looked for before each transfer."""

    def __init__(self, path: Path) -> None:
        super().__init__(Random(0))
        self._path = path
        self._told = ""

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        self._follow()
        return super().read(fd, buffers, offset)

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        self._follow()
        return super().write(fd, buffers, offset)

    def _follow(self) -> None:
        try:
            told = self._path.read_text()
        except FileNotFoundError:
            return
        if told != self._told:
            self._told, parts = told, json.loads(told)
            self.heal()
            self.slow_down(**parts.get("pace", {}))
            rates = parts.get("rates", {})
            self.set_rates({Fault(name): rate for name, rate in rates.items()})


def main() -> int:
    loaded = load_config(None, os.environ, sys.argv[2::2])
    return run(loaded.config, PacedIO(loaded.config.socket_dir / _FILE))


if __name__ == "__main__":
    sys.exit(main())

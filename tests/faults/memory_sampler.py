"""What the kernel counts as the agent's memory, at moments when it stands still."""

from __future__ import annotations

import os
import threading

from kvtier.testing import AgentProcess
from tests.faults.agents import memfds

_INTERVAL_SECONDS = 0.003


class MemorySampler:
    """A context manager that samples an agent until its end.

    Descriptors are read one after the other, so a sum over a running agent could count memory that
    has moved from one to another twice: the agent is stopped (SIGSTOP) for each sample.
    """

    def __init__(self, agent: AgentProcess) -> None:
        self.highest_bytes = 0
        self.samples = 0
        self._agent = agent
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler")

    def _run(self) -> None:
        while not self._end.wait(_INTERVAL_SECONDS):
            self._agent.pause()
            try:
                os.waitid(os.P_PID, self._agent.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                total = sum(memfds(self._agent.pid).values())
            finally:
                self._agent.resume()
            self.highest_bytes = max(self.highest_bytes, total)
            self.samples += 1

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

"""An agent that dies or stands still harms no worker, and is found again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import running_agent
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_RECONNECT_SECONDS = 3.0
_TIMEOUT_SECONDS = 0.5


@contextmanager
def _churning(agent: AgentProcess, count: int) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        workers = [
            WorkerProcess(scripts.churn, agent.address, f"w{index}", 6, 16, _TIMEOUT_SECONDS)
            for index in range(count)
        ]
        yield [stack.enter_context(each) for each in workers]


def _wait_for_success(workers: list[WorkerProcess], since: float, deadline_seconds: float) -> None:
    for worker in workers:
        wait_until(
            lambda worker=worker: worker.ask("report")["succeeded_at"] > since,  # type: ignore[misc]
            max(0.0, since + deadline_seconds - time.monotonic()),
            0.02,
        )


def test_workers_outlive_a_killed_agent_and_find_the_next_one() -> None:
    with running_agent("16MiB") as agent, _churning(agent, 3) as workers:
        _wait_for_success(workers, time.monotonic(), 10)
        for _ in range(times(30)):
            agent.kill()
            agent.start()
            _wait_for_success(workers, time.monotonic(), _RECONNECT_SECONDS)
        for worker in workers:
            report = worker.ask("stop")
            assert report["wrong"] == 0
            assert report["right"] > 0
            assert report["failures"] > 0
            assert worker.wait() == 0


def test_workers_outlive_an_agent_that_never_returns() -> None:
    with running_agent("16MiB") as agent, _churning(agent, 2) as workers:
        _wait_for_success(workers, time.monotonic(), 10)
        agent.kill()
        before = [each.ask("report")["failures"] for each in workers]
        for worker, failures in zip(workers, before, strict=True):
            wait_until(
                lambda worker=worker, failures=failures: (  # type: ignore[misc]
                    worker.ask("report")["failures"] > failures + 100
                ),
                5,
            )
            assert worker.ask("stop")["wrong"] == 0
            assert worker.wait() == 0


def test_a_stopped_agent_costs_each_thread_one_deadline() -> None:
    with (
        running_agent("16MiB") as agent,
        WorkerProcess(scripts.time_calls, agent.address, 4, _TIMEOUT_SECONDS) as worker,
    ):
        assert worker.hear() == "going"
        for _ in range(times(5)):
            _stop_and_continue(agent, worker)
        assert worker.ask("stop") == "stopped"


def _stop_and_continue(agent: AgentProcess, worker: WorkerProcess) -> None:
    before = worker.ask("report")
    agent.pause()
    wait_until(lambda: _gained(worker, before, "failures") > 200, 4 * _TIMEOUT_SECONDS, 0.02)
    agent.resume()
    wait_until(lambda: _gained(worker, before, "right") > 8, _RECONNECT_SECONDS, 0.02)
    for old, new in zip(before, worker.ask("report"), strict=True):
        slow = new["slow"][len(old["slow"]) :]
        assert len(slow) <= 1, slow
        assert all(each < _TIMEOUT_SECONDS + 0.2 for each in slow), slow
        assert new["wrong"] == 0


def _gained(worker: WorkerProcess, before: list[dict[str, Any]], what: str) -> int:
    """The least that any thread has gained."""
    now = worker.ask("report")
    return min(int(new[what] - old[what]) for old, new in zip(before, now, strict=True))

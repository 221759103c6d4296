"""Five times as many calls as an agent can answer: it answers nearly as many as ever, refuses the
others with a time to come again, and looks up as fast as before."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np
import pytest

from kvtier import BlockStatus, Client
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from tests.faults.agents import resident_bytes
from tests.faults.blocks import MIB, hashes_of
from tests.faults.repetitions import QUICK
from tests.overload import open_loop

pytestmark = [pytest.mark.faults, pytest.mark.alone]

log = logging.getLogger(__name__)

#: Rounds of quiet, of peak and of overload: all see the same machine, whatever else it does.
_ROUNDS = 1 if QUICK else 4
_SECONDS = 5.0 if QUICK else 15.0
_PEAK_SECONDS = 2.0 if QUICK else 3.0
_QUIET_SECONDS = 2.0 if QUICK else 3.0
_TIMES = 5
_CALLERS = (4, 12)
_GROWTH_BYTES = 64 * MIB
_SAMPLE_SECONDS = 0.05
#: In the quick form other work may be on the machine: it finds what is badly wrong.
_LEAST_GOODPUT = 0.5 if QUICK else 0.8
_SLOWEST_LOOKUPS = 8.0 if QUICK else 3.0
#: Of shares of some calls: all streams are taken nearly always, and then all kinds are refused.
_CHANCE = 0.15 if QUICK else 0.04
_MOST_LATE = 1.0 if QUICK else 0.05


class _Memory:
    """The most that a process had; a context manager."""

    def __init__(self, pid: int) -> None:
        self.highest_bytes = 0
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            self.highest_bytes = max(self.highest_bytes, resident_bytes(self._pid))

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()


@contextmanager
def _filled_agent(cpu: int) -> Iterator[AgentProcess]:
    settings = {
        "tiers.host.capacity": "512MiB",
        "tiers.host.memory_reserve": 0,
        "leases.max_share": 1.0,
        "streams.max_streams": 8,
    }
    with AgentProcess(settings=settings, cpu=cpu) as agent:
        with Client(agent.address, timeout_seconds=10) as client:
            namespace = client.namespace(open_loop.SPEC)
            rows = np.zeros((open_loop.BLOCKS, 2 * MIB), np.uint8)
            for name in open_loop.sequences():
                statuses = namespace.store(hashes_of(name, open_loop.BLOCKS), rows)
                assert set(statuses) == {BlockStatus.OK}
        yield agent


@dataclass
class _Measured:
    """Of all rounds together."""

    quiet: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    #: Streams that brought all their blocks, a second: with so many callers at a time.
    peaks: dict[int, list[float]] = field(default_factory=dict)
    goodput: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    retries: list[float] = field(default_factory=list)
    #: Resident, before the first overload and at the most.
    memory_bytes: int = 0
    highest_bytes: int = 0

    def round(self, agent: AgentProcess, load: WorkerProcess, lookups: WorkerProcess) -> None:
        quiet = lookups.ask(_QUIET_SECONDS, _QUIET_SECONDS + 20)
        for callers in _CALLERS:
            answered = load.ask(["closed", callers, _PEAK_SECONDS], 60)
            self.peaks.setdefault(callers, []).append(_goodput(answered))
        good = sum(count for each, count in answered["counts"].items() if each.endswith(" OK"))
        offered = _TIMES * good / answered["seconds"]
        self.memory_bytes = self.memory_bytes or resident_bytes(agent.pid)
        with _Memory(agent.pid) as sampled:
            load.say(["open", offered, _SECONDS])
            busy = lookups.ask(_SECONDS, _SECONDS + 20)
            result = load.hear(_SECONDS + 60)
        self.quiet += quiet
        self.busy += busy
        self.goodput.append(_goodput(result))
        self.counts.update(result["counts"])
        self.retries += result["retries"]
        self.highest_bytes = max(self.highest_bytes, sampled.highest_bytes)
        log.info(
            "offered %.0f/s; streams: peaks %s, now %.1f/s; lookups, p99: quiet %.2f, now %.2f ms",
            *(offered, {callers: round(each[-1], 1) for callers, each in self.peaks.items()}),
            *(self.goodput[-1], 1e3 * _p99(quiet), 1e3 * _p99(busy)),
        )


def _share(counts: Counter[str], method: str) -> float:
    """Of the calls of a method, what was refused."""
    mine = {each: count for each, count in counts.items() if each.startswith(method)}
    return counts[f"{method} refused"] / sum(mine.values())


def _p99(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99))


@pytest.mark.timeout(300)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_five_times_what_it_can_do() -> None:
    mine, theirs = sorted(os.sched_getaffinity(0))[:2]
    with (
        _filled_agent(mine) as agent,
        WorkerProcess(open_loop.offer, str(agent.directory), theirs) as load,
        WorkerProcess(open_loop.look_up, agent.address, theirs) as lookups,
    ):
        assert [load.hear(), lookups.hear()] == ["ready"] * 2
        measured = _Measured()
        for _ in range(_ROUNDS):
            measured.round(agent, load, lookups)
        for each in (load, lookups):
            each.say("stop")
    counts, peak = measured.counts, max(map(mean, measured.peaks.values()))
    slower = _p99(measured.busy) / _p99(measured.quiet)
    log.info("goodput %.2f of the peak; lookups %.2f times", mean(measured.goodput) / peak, slower)
    growth = measured.highest_bytes - measured.memory_bytes
    log.info("memory: %.1f MiB more; %s", growth / MIB, counts)
    assert counts["ReadBlocks refused"] > 0
    assert {each.partition(" ")[2] for each in counts} <= {"OK", "refused", "late"}, counts
    assert counts["ReadBlocks late"] <= _MOST_LATE * counts["ReadBlocks OK"]
    assert all(0 < each <= 5 for each in measured.retries)
    assert growth <= _GROWTH_BYTES
    assert mean(measured.goodput) >= _LEAST_GOODPUT * peak
    assert _share(counts, "PrefetchPrefix") >= _share(counts, "ReserveBlocks") - _CHANCE
    assert _share(counts, "ReserveBlocks") >= _share(counts, "ReadBlocks") - _CHANCE
    assert slower <= _SLOWEST_LOOKUPS


def _goodput(result: dict[str, Any]) -> float:
    """Streams that brought all their blocks, a second."""
    good: int = result["counts"].get("ReadBlocks OK", 0)
    return good / float(result["seconds"])

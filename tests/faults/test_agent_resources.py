"""An agent does not grow with the workers that come and go."""

from __future__ import annotations

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import (
    descriptor_count,
    host_stats,
    resident_bytes,
    running_agent,
    thread_count,
)
from tests.faults.blocks import BLOCK_BYTES, KIB, MIB, Verdict, hashes_of, judge, spec_of, store
from tests.faults.memory_sampler import MemorySampler
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults


def test_attaching_and_detaching_leaves_nothing() -> None:
    with running_agent("16MiB") as agent:
        for turn in range(times(200)):
            with Client(agent.address) as client:
                namespace = client.namespace(spec_of())
                assert store(namespace, "stored", 4) == 4
                assert judge(namespace, hashes_of("stored", 4)) == Verdict(right=4)
            if turn == 1:
                descriptors, memory = descriptor_count(agent.pid), resident_bytes(agent.pid)
        wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 2, 2)
        assert thread_count(agent.pid) < 40
        assert resident_bytes(agent.pid) < memory + 16 * MIB


def test_worker_processes_that_come_and_go_leave_nothing() -> None:
    with running_agent("16MiB") as agent:
        for turn in range(times(50)):
            with WorkerProcess(
                scripts.use_and_leave, agent.address, "same", BLOCK_BYTES, 16
            ) as worker:
                assert Verdict(**worker.hear()) == Verdict(right=16)
                assert worker.wait() == 0
            if turn == 1:
                descriptors = descriptor_count(agent.pid)
        wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 2, 2)


#: Trading cuts an arena into at most some dozens of extents; each turn here retires several.
_EXTENTS = 24


def test_retired_extents_are_closed_once_their_workers_are_gone() -> None:
    with running_agent("16MiB") as agent, MemorySampler(agent) as sampler:
        counts = []
        for turn in range(times(60) * 2):
            name, size = [("a", 16 * KIB), ("b", BLOCK_BYTES)][turn % 2]
            with WorkerProcess(
                scripts.use_and_leave, agent.address, name, size, 24 * MIB // size
            ) as worker:
                assert Verdict(**worker.hear()).wrong == 0
                assert worker.wait() == 0
            counts.append(descriptor_count(agent.pid))
        assert max(counts) <= counts[0] + _EXTENTS, counts
    assert sampler.highest_bytes <= 16 * MIB


def test_retired_extents_are_closed_once_their_workers_have_unmapped_them() -> None:
    with (
        running_agent("16MiB") as agent,
        AdminClient(agent.admin_address) as admin,
        Client(agent.address, timeout_seconds=5) as client,
    ):
        counts = []
        for turn in range(times(60) * 2):
            name, size = [("a", 16 * KIB), ("b", BLOCK_BYTES)][turn % 2]
            namespace = client.namespace(spec_of(name, size))
            for index in range(24 * MIB // size // 64):
                assert store(namespace, f"{turn}/{index}", 64) == 64
            counts.append(descriptor_count(agent.pid))
        assert max(counts) <= counts[0] + _EXTENTS, counts
        assert host_stats(admin).evicted_count > 0

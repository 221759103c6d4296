"""A full arena serves what fits, says so for the rest, and is shared fairly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from kvtier import BlockStatus, Client
from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import host_stats, running_agent
from tests.faults.blocks import (
    BLOCK_BYTES,
    KIB,
    MIB,
    Verdict,
    hashes_of,
    judge,
    payloads,
    spec_of,
    store,
)
from tests.faults.memory_sampler import MemorySampler
from tests.faults.repetitions import seconds
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_AT_ONCE_SECONDS = 1.0
_TIMEOUT_SECONDS = 10.0
_OK, _REFUSED = int(BlockStatus.OK), int(BlockStatus.REFUSED)


def _is_prefix_then_refused(statuses: Sequence[int]) -> bool:
    return list(statuses) == sorted(statuses) and set(statuses) == {_OK, _REFUSED}


def test_of_a_batch_larger_than_the_arena_what_fits_is_stored() -> None:
    with (
        running_agent("8MiB") as agent,
        MemorySampler(agent) as sampler,
        Client(agent.address, timeout_seconds=_TIMEOUT_SECONDS) as client,
    ):
        namespace = client.namespace(spec_of())
        hashes = hashes_of("large", 256)
        rows = payloads(namespace.spec, hashes)
        begin = time.monotonic()
        statuses = namespace.store(hashes, rows)
        assert time.monotonic() - begin < _AT_ONCE_SECONDS
        assert _is_prefix_then_refused(statuses)
        stored = list(statuses).count(_OK)
        assert stored >= 0.8 * 8 * MIB / BLOCK_BYTES  # more than a session may reserve at once
        assert judge(namespace, hashes) == Verdict(right=stored)
    assert sampler.samples > 0
    assert sampler.highest_bytes <= 8 * MIB


def test_an_arena_smaller_than_one_block_refuses() -> None:
    with running_agent("1MiB") as agent, Client(agent.address) as client:
        namespace = client.namespace(spec_of(block_bytes=2 * MIB))
        statuses = namespace.store(hashes_of("large", 1), np.zeros((1, 2 * MIB), np.uint8))
        assert list(statuses) == [_REFUSED]


def test_leased_slots_are_not_waited_for() -> None:
    with (
        running_agent("8MiB", leases__max_share=1.0) as agent,
        Client(agent.address, timeout_seconds=_TIMEOUT_SECONDS) as reader,
        Client(agent.address, timeout_seconds=_TIMEOUT_SECONDS) as writer,
    ):
        reading, writing = (each.namespace(spec_of()) for each in (reader, writer))
        stored = sum(store(reading, f"leased/{index}", 8) for index in range(20))
        assert stored == 160
        leases = [reading.load(hashes_of(f"leased/{index}", 8)) for index in range(20)]
        leased = sum(each.count for each in leases)
        hashes = hashes_of("more", 16)
        begin = time.monotonic()
        statuses = writing.store(hashes, payloads(writing.spec, hashes))
        assert time.monotonic() - begin < _AT_ONCE_SECONDS
        free = 8 * MIB // BLOCK_BYTES - leased
        assert list(statuses).count(_REFUSED) >= 16 - free
        for index in range(20):
            verdict = judge(reading, hashes_of(f"leased/{index}", 8))
            assert verdict.wrong == 0
        for each in leases:
            each.release()
        reading.load(hashes_of("none", 1)).release()
        assert store(writing, "more", 16) == 16


def test_a_load_beyond_the_sessions_share_is_refused_not_waited_for() -> None:
    with (
        running_agent("8MiB", leases__max_share=0.25) as agent,
        Client(agent.address, timeout_seconds=_TIMEOUT_SECONDS) as client,
    ):
        namespace = client.namespace(spec_of())
        for index in range(8):
            assert store(namespace, f"part/{index}", 8) == 8
        hashes = [each for index in range(8) for each in hashes_of(f"part/{index}", 8)]
        begin = time.monotonic()
        with namespace.load(hashes) as loaded:
            assert time.monotonic() - begin < _AT_ONCE_SECONDS
            assert _is_prefix_then_refused(loaded.statuses)
            assert loaded.count == 32


_UNLUCKY_BLOCKS = 32


@pytest.mark.parametrize(
    ("name", "block_bytes"), [("second", BLOCK_BYTES), ("second", 48 * KIB), ("second", MIB)]
)
def test_a_second_namespace_gets_its_half_of_a_full_arena(name: str, block_bytes: int) -> None:
    with running_agent("64MiB") as agent, AdminClient(agent.admin_address) as admin:
        with ExitStack() as stack:
            sampler = stack.enter_context(MemorySampler(agent))
            first = stack.enter_context(_filling(agent, "first", BLOCK_BYTES))
            assert first.hear() == "going"
            wait_until(lambda: host_stats(admin).used_bytes > 56 * MIB, 10)
            second = stack.enter_context(_filling(agent, name, block_bytes))
            assert second.hear() == "going"
            wait_until(lambda: _used(admin, name) > 0.4 * 64 * MIB, 10)
            deadline = time.monotonic() + seconds(4)
            wait_until(lambda: time.monotonic() > deadline, 10, 0.05)
            for each in ("first", name):
                wait_until(lambda each=each: _used(admin, each) > 0.35 * 64 * MIB, 2)  # type: ignore[misc]
            # A class without an extent may find every extent of the other in use at an instant.
            assert first.ask("stop") + second.ask("stop") <= _UNLUCKY_BLOCKS
        assert sampler.samples > 50
        assert sampler.highest_bytes <= 64 * MIB


def _filling(agent: AgentProcess, name: str, block_bytes: int) -> WorkerProcess:
    count = max(1, MIB // block_bytes)
    return WorkerProcess(scripts.fill, agent.address, name, block_bytes, count)


def _used(admin: AdminClient, name: str) -> int:
    return admin.get_stats(f"default/{name}").tiers[0].used_bytes


def test_64_namespaces_work_in_an_arena_of_1_gib() -> None:
    with (
        running_agent("1GiB") as agent,
        MemorySampler(agent) as sampler,
        Client(agent.address, timeout_seconds=_TIMEOUT_SECONDS) as client,
    ):
        names = [f"tenant-{index}" for index in range(64)]
        for name in names:
            assert store(client.namespace(spec_of(name, 2 * MIB)), name, 4) == 4
        for name in names:
            namespace = client.namespace(spec_of(name, 2 * MIB))
            assert judge(namespace, hashes_of(name, 4)) == Verdict(right=4)
    assert sampler.highest_bytes <= 1 << 30

"""A slower tier of any speed does not make a request slower than one without kvtier.

A worker computes a block by sleeping for a while. Each request is made with kvtier and without, in
turns, and real time is compared: that of looking up, loading what comes sooner than it would be
computed, and computing the rest.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvtier import BlockStatus, Client, Namespace, Tier, Wait
from kvtier.client.admin import AdminClient
from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.slow_agent import SlowAgentProcess
from kvtier.testing.tcp_proxy import TcpProxy
from tests.faults.blocks import BLOCK_BYTES, hashes_of, is_right, payloads, spec_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.faults, pytest.mark.alone]

_BLOCKS = 48
_COMPUTE_SECONDS = 0.012
_PAIRS = max(5, times(15))
_SPEC = spec_of()
_SETTINGS: dict[str, object] = {"tiers.host.capacity": "64MiB", "tiers.host.memory_reserve": 0}


class _Worker:
    """Asks for the same sequences again and again, each of which only a slower tier has."""

    def __init__(self, client: Client, admin: AdminClient, tier: Tier) -> None:
        self.namespace: Namespace = client.namespace(_SPEC)
        self._admin = admin
        self._tier = tier
        self.loaded = 0

    def store(self, sequences: int) -> None:
        for number in range(sequences):
            hashes = hashes_of(str(number), _BLOCKS)
            statuses = self.namespace.store(hashes, payloads(_SPEC, hashes))
            assert set(statuses) == {int(BlockStatus.OK)}
        self._admin.flush(self._tier)

    def leave_host(self) -> None:
        self._admin.evict_blocks(_SPEC.label, tiers=[Tier.HOST])

    def request(self, number: int) -> float:
        """How long it takes with kvtier; judges what is loaded."""
        hashes = hashes_of(str(number), _BLOCKS)
        out = np.empty((_BLOCKS, BLOCK_BYTES), np.uint8)
        began = time.monotonic()
        speed = _COMPUTE_SECONDS
        found = self.namespace.lookup(hashes, compute_seconds_per_block=speed)
        statuses = (
            self.namespace.load_into(
                hashes[: found.matched], out, wait=Wait.BREAK_EVEN, compute_seconds_per_block=speed
            )
            if found.matched == _BLOCKS
            else []
        )
        good = [*statuses, 0]
        count = next(i for i, status in enumerate(good) if status != BlockStatus.OK)
        _compute(_BLOCKS - count)
        seconds = time.monotonic() - began
        self.loaded += count
        assert all(is_right(_SPEC, hashes[i], out[i]) for i in range(count))
        return seconds


def _compute(blocks: int) -> float:
    began = time.monotonic()
    for _ in range(blocks):
        time.sleep(_COMPUTE_SECONDS)
    return time.monotonic() - began


def _ratio(worker: _Worker, sequences: int) -> float:
    """Of the medians, with kvtier to without."""
    with_it, without = [], []
    for number in range(_PAIRS):
        without.append(_compute(_BLOCKS))
        with_it.append(worker.request(number % sequences))
        worker.leave_host()
    ratio = statistics.median(with_it) / statistics.median(without)
    log.info("ratio %.3f, %d blocks loaded of %d", ratio, worker.loaded, _PAIRS * _BLOCKS)
    return ratio


@pytest.fixture
def slow_agent(tmp_path: Path) -> Iterator[SlowAgentProcess]:
    disk = {"tiers.disk.paths": tmp_path / "disk", "tiers.disk.capacity": "128MiB"}
    (tmp_path / "disk").mkdir()
    with SlowAgentProcess(settings={**_SETTINGS, **disk}) as agent:
        yield agent


@contextmanager
def _worker(agent: AgentProcess, tier: Tier, sequences: int) -> Iterator[_Worker]:
    with (
        Client(agent.address, timeout_seconds=5.0) as client,
        AdminClient(agent.admin_address, timeout_seconds=20.0) as admin,
    ):
        worker = _Worker(client, admin, tier)
        worker.store(sequences)
        worker.leave_host()
        yield worker


@pytest.mark.parametrize(
    ("pace", "most"),
    [
        ({}, 0.3),
        ({"latency_seconds": 0.02}, 0.6),
        ({"bytes_per_second": 1e6}, 1.05),
        ({"latency_seconds": 1.0}, 1.05),
        ({"bytes_per_second": 5e6}, 1.05),  # as fast as computing, about
    ],
    ids=str,
)
def test_disk(slow_agent: SlowAgentProcess, pace: dict[str, float], most: float) -> None:
    with _worker(slow_agent, Tier.DISK, _PAIRS) as worker:
        slow_agent.slow_down(**pace)
        assert _ratio(worker, _PAIRS) <= most
        slow_agent.heal()


def test_disk_that_is_slow_now_and_then(slow_agent: SlowAgentProcess) -> None:
    """What is lost at each change is little; and between them it is used."""
    with _worker(slow_agent, Tier.DISK, _PAIRS) as worker:
        worst, used = 0.0, 0
        for turn in range(4):
            if turn % 2:
                slow_agent.slow_down(bytes_per_second=1e6)
            else:
                slow_agent.heal()
                wait_until(lambda: _is_used(worker), 30.0, 0.1)
                used += 1
            for number in range(3):
                without = _compute(_BLOCKS)
                worst = max(worst, worker.request(number) / without)
                worker.leave_host()
        slow_agent.heal()
        log.info("worst ratio of a single request %.3f", worst)
        assert used == 2
        assert worst <= 1.15


def _is_used(worker: _Worker) -> bool:
    before = worker.loaded
    worker.request(0)
    worker.leave_host()
    return worker.loaded == before + _BLOCKS


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda proxy: proxy.pass_on(), 0.5),
        (lambda proxy: proxy.throttle(1e6), 1.05),
        (lambda proxy: proxy.delay(0.5), 1.05),  # a second there and back
    ],
    ids=["normal", "1 MB/s", "1 s"],
)
def test_cluster(change: Callable[[TcpProxy], None], most: float) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(maxmemory_bytes=256 << 20))
        proxy = stack.enter_context(TcpProxy(server.port))
        settings = {**_SETTINGS, "tiers.cluster.url": proxy.url, "tiers.cluster.timeout": 4.0}
        agent = stack.enter_context(AgentProcess(settings=settings))
        worker = stack.enter_context(_worker(agent, Tier.CLUSTER, _PAIRS))
        change(proxy)
        assert _ratio(worker, _PAIRS) <= most
        proxy.pass_on()

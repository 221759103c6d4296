"""Tiers change their size under load: no error, no wrong byte, and no byte more than allowed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing import AgentProcess
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.agents import memfds, running_agent
from tests.faults.blocks import MIB, Verdict, hashes_of, judge, spec_of, store
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

HOST_MIB, DISK_MIB = 96, 192
_SHRINK_SECONDS = 30.0
_SLOWEST_CALL_SECONDS = 5.0


class Load(threading.Thread):
    """One worker that stores and loads by chance."""

    def __init__(self, address: str, seed: int) -> None:
        super().__init__(name=f"load-{seed}")
        self._address, self._random = address, Random(seed)
        self.stopping = threading.Event()
        self.verdict = Verdict()
        self.stored = 0
        self.slowest_seconds = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self._address, timeout_seconds=10.0) as client:
                namespaces = [client.namespace(spec_of("one")), client.namespace(spec_of("two"))]
                while not self.stopping.is_set():
                    begin = time.monotonic()
                    namespace = self._random.choice(namespaces)
                    name = f"load/{int(self._random.paretovariate(0.6)) % 500}"
                    if self._random.random() < 0.5:
                        self.stored += store(namespace, name, 8)
                    else:
                        self.verdict += judge(namespace, hashes_of(name, 8))
                    self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begin)
        except BaseException as error:  # for the thread that waits
            self.error = error


def du(directory: Path) -> int:
    total = 0
    for path in (directory, *directory.rglob("*")):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def tier_of(admin: AdminClient, tier: Tier) -> pb.TierStats:
    return next(each for each in admin.get_stats().tiers if int(each.tier) == tier)


def is_within(admin: AdminClient, tier: Tier, size_mib: int) -> bool:
    stats = tier_of(admin, tier)
    assert stats.capacity_bytes == size_mib * MIB
    return stats.allocated_bytes <= stats.capacity_bytes


def resize(agent: AgentProcess, admin: AdminClient, disk: Path, host: int, slabs: int) -> None:
    most = max(tier_of(admin, Tier.DISK).capacity_bytes, slabs * MIB)
    admin.resize_tier(Tier.HOST, host * MIB)
    admin.resize_tier(Tier.DISK, slabs * MIB)

    def is_done() -> bool:
        assert du(disk) <= most
        return is_within(admin, Tier.HOST, host) and is_within(admin, Tier.DISK, slabs)

    wait_until(is_done, _SHRINK_SECONDS)
    assert du(disk) <= slabs * MIB
    assert sum(memfds(agent.pid).values()) <= host * MIB


def test_a_tenth_and_back_while_workers_go_on(tmp_path: Path) -> None:
    random, disk = Random(7), tmp_path / "disk"
    with running_agent(
        f"{HOST_MIB}MiB",
        tiers__disk__paths=f"[{disk}]",
        tiers__disk__capacity=f"{DISK_MIB}MiB",
        tiers__disk__min_free=0,
    ) as agent:
        loads = [Load(agent.address, seed) for seed in range(3)]
        for each in loads:
            each.start()
        try:
            with AdminClient(agent.admin_address, timeout_seconds=10.0) as admin:
                for _ in range(times(20)):
                    done = sum(each.stored for each in loads)
                    wait_until(
                        lambda done=done: sum(each.stored for each in loads) > done + 500,  # type: ignore[misc]
                        _SHRINK_SECONDS,
                    )
                    resize(agent, admin, disk, HOST_MIB // 10, DISK_MIB // 10)
                    resize(
                        agent, admin, disk, random.randrange(4, 150), random.randrange(16, DISK_MIB)
                    )
                    resize(agent, admin, disk, HOST_MIB, DISK_MIB)
        finally:
            for each in loads:
                each.stopping.set()
            for each in loads:
                each.join()
        assert [each.error for each in loads] == [None] * 3
        verdict = sum((each.verdict for each in loads), Verdict())
        assert verdict.wrong == 0
        assert verdict.right > 100
        assert max(each.slowest_seconds for each in loads) < _SLOWEST_CALL_SECONDS
        assert "Traceback" not in agent.log
        with AdminClient(agent.admin_address, timeout_seconds=10.0) as admin:
            admin.resize_tier(Tier.DISK, 2 * DISK_MIB * MIB)
        agent.stop()
        agent.start()
        with AdminClient(agent.admin_address) as admin:
            assert tier_of(admin, Tier.DISK).capacity_bytes == DISK_MIB * MIB
            assert du(disk) <= DISK_MIB * MIB

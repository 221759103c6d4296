"""`kvtier bench gpu`: copies to a device and on it, against plain ones of the same device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import numpy as np

from kvtier.bench.process import in_worker_process
from kvtier.client.admin import AdminClient
from kvtier.client.client import Client
from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.testing.agent_process import AgentProcess
from kvtier.v1.cache_admin_pb2 import TierStats

_HASH_BYTES: Final = 32
#: Sequences that HOST has and the device has not, one for each promotion that is measured.
_ROUNDS: Final = 6
_DEADLINE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.0005


def run(
    device: str = "cpu", block_bytes: int = 2 << 20, batch: int = 64, seconds: float = 3.0
) -> dict[str, object]:
    """Starts an agent with a GPU tier and a worker process on the device; see `measure`."""
    total = (_ROUNDS + 2) * batch * block_bytes
    settings = {
        "tiers.host.capacity": 2 * total,
        "tiers.gpu.devices": f"[{{device: '{device}', capacity: {2 * total}}}]",
        "tiers.gpu.policy": "lru",
        "leases.max_share": 1.0,
        "log.level": "warning",
    }
    with AgentProcess(settings=settings) as agent:
        return in_worker_process(
            measure,
            address=agent.address,
            admin_address=agent.admin_address,
            device=device,
            block_bytes=block_bytes,
            batch=batch,
            seconds=seconds,
        )


def measure(
    address: str, admin_address: str, device: str, block_bytes: int, batch: int, seconds: float
) -> dict[str, Any]:
    """What the worker process does. GB/s are 1e9 bytes.

    `limit_h2d_gbps` is a copy of a batch from pinned memory to the device, `h2d_ratio` how near to
    it the agent comes, from a load to the copies on the device; `limit_d2d_gbps` a copy on the
    device, `d2d_ratio` how near to it a worker comes that loads from there, calls included.
    """
    with (
        AdminClient(admin_address) as admin,
        _worker(address, device) as client,
    ):
        namespace = client.namespace(NamespaceSpec(name="bench", block_bytes=(block_bytes,)))
        copies = _Copies(admin, namespace, device, block_bytes, batch)
        name = copies.stats().device
        copies.promote()  # extents are allocated, pinned and mapped
        limits = copies.limits(seconds / 2)
        promotions = [copies.promote() for _ in range(_ROUNDS)]
        loads = copies.rates(seconds / 2, copies.load)
        return {
            "device": name,
            "block_bytes": block_bytes,
            "batch_blocks": batch,
            "limit_h2d_gbps": limits[0],
            "h2d_gbps": statistics.median(promotions),
            "h2d_ratio": statistics.median(promotions) / limits[0],
            "limit_d2d_gbps": limits[1],
            "d2d_gbps": statistics.median(loads),
            "d2d_ratio": statistics.median(loads) / limits[1],
        }


def _worker(address: str, device: str) -> Client:
    import_torch()
    return Client(address, worker="bench", device=device, timeout_seconds=30.0)


def import_torch() -> Any:
    """The worker's; measurements that need none start without it."""
    return import_module("torch")


class _Copies:
    """Batches of blocks on their way to the device and on it."""

    def __init__(
        self,
        admin: AdminClient,
        namespace: Namespace,
        device: str,
        block_bytes: int,
        batch: int,
    ) -> None:
        torch = import_torch()
        self._admin = admin
        self._namespace = namespace
        self._bytes = batch * block_bytes
        self._torch = torch
        self._is_device = device != "cpu"
        self._host = torch.zeros((batch, block_bytes), dtype=torch.uint8)
        if self._is_device:
            self._host = self._host.pin_memory()
        self._there = torch.zeros((batch, block_bytes), dtype=torch.uint8, device=device)
        self._out = torch.zeros_like(self._there)
        blocks = np.zeros((batch, block_bytes), np.uint8)
        self._sequences = [_hashes(number, batch) for number in range(_ROUNDS + 1)]
        for hashes in self._sequences:
            statuses = namespace.store(hashes, blocks)
            assert set(statuses) == {BlockStatus.OK}, statuses
        self._promoted: list[list[bytes]] = []

    def stats(self) -> TierStats:
        """The device's; raises RuntimeError if the agent could not use it."""
        tier = self._admin.get_stats().tiers[0]
        if int(tier.tier) != Tier.GPU or tier.state != TierStats.ACTIVE:
            raise RuntimeError(f"the agent has no such device: {tier.reason}")
        return tier

    def limits(self, seconds: float) -> tuple[float, float]:
        """To the device, and on it."""
        into = self.rates(seconds / 2, lambda: self._there.copy_(self._host, non_blocking=True))
        on = self.rates(seconds / 2, lambda: self._out.copy_(self._there, non_blocking=True))
        return statistics.median(into), statistics.median(on)

    def promote(self) -> float:
        """Loads a sequence that the device has not yet, in GB/s until it is there."""
        hashes = self._sequences.pop()
        before = self.stats().stored_count
        with self._namespace.load(hashes):
            started = time.perf_counter()
            while self.stats().stored_count - before < len(hashes):
                if time.perf_counter() - started > _DEADLINE_SECONDS:
                    raise RuntimeError("blocks do not come to the device")
                time.sleep(_POLL_SECONDS)
            self._promoted.append(hashes)
            return self._bytes / (time.perf_counter() - started) / 1e9

    def load(self) -> None:
        """A batch that is on the device, into a tensor there."""
        self._promoted.append(self._promoted.pop(0))
        statuses = self._namespace.load_into(self._promoted[0], self._out)
        assert set(statuses) == {BlockStatus.OK}, statuses

    def rates(self, seconds: float, copy: Callable[[], object]) -> list[float]:
        """GB/s, again and again."""
        found: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(found) < 3:
            start = time.perf_counter()
            copy()
            if self._is_device:
                self._torch.accelerator.synchronize()
            found.append(self._bytes / (time.perf_counter() - start) / 1e9)
        return found


def _hashes(seed: int, count: int) -> list[bytes]:
    data = np.random.default_rng(seed).bytes(count * _HASH_BYTES)
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]

"""`kvtier bench host`: HOST against a plain copy, and calls against a null call."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvtier import memory
from kvtier.bench.process import in_worker_process
from kvtier.client.client import Client
from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.testing.agent_process import AgentProcess

_HASH_BYTES = 32
_LOOKUP_KEYS = 8192
_CALLS = 300
_BATCHES_IN_ARENA = 8
_MIN_ARENA_BYTES = 1 << 30
_FILL_BYTES = 16 << 20
_MAX_CALL_BLOCKS = 8192


def run(block_bytes: int = 2 << 20, batch: int = 16, seconds: float = 5.0) -> dict[str, object]:
    """Starts an agent and a worker process, both copying with one thread; see `Measurement`."""
    capacity = max(_MIN_ARENA_BYTES, (_BATCHES_IN_ARENA + 1) * batch * block_bytes)
    settings = {
        "tiers.host.capacity": capacity,
        "leases.max_share": 1.0,
        "movers": 1,
        "log.level": "warning",
    }
    with AgentProcess(settings=settings) as agent:
        result = in_worker_process(
            measure,
            address=agent.address,
            block_bytes=block_bytes,
            batch=batch,
            capacity=capacity,
            seconds=seconds,
        )
        result["rss_agent_bytes"] = resident_bytes(agent.pid)
    return result


def measure(
    address: str, block_bytes: int, batch: int, capacity: int, seconds: float
) -> dict[str, Any]:
    """What the worker process does. GB/s are 1e9 bytes; times are medians in microseconds."""
    spec = NamespaceSpec(name="bench", block_bytes=(block_bytes,))
    with Client(address, worker="bench", timeout_seconds=30.0) as client:
        namespace = client.namespace(spec)
        copies = _Copies(namespace, block_bytes, batch, capacity)
        copies.fill()
        rates = copies.alternate(seconds)
        return {
            "block_bytes": block_bytes,
            "batch_blocks": batch,
            **rates,
            **_call_times(client, namespace),
        }


class _Copies:
    """Stores and loads of whole batches beside plain copies between the same kinds of memory."""

    def __init__(self, namespace: Namespace, block_bytes: int, batch: int, capacity: int) -> None:
        self._namespace = namespace
        self._batch = batch
        self._block_bytes = block_bytes
        self._bytes = batch * block_bytes
        self._capacity = capacity
        self._private = np.zeros((batch, block_bytes), dtype=np.uint8)
        self._private[:] = np.arange(batch, dtype=np.uint8)[:, None]
        self._shared = _shared_memory(capacity // self._bytes, batch, block_bytes)
        self._stored: deque[list[bytes]] = deque(maxlen=len(self._shared) // 2 + 1)
        self._next = 0
        self._turn = 0

    def fill(self) -> None:
        """Until the arena is full, so that every store measured has to evict.

        Small batches are put together into larger calls: else this would take minutes.
        """
        batches = max(1, min(_MAX_CALL_BLOCKS // self._batch, _FILL_BYTES // self._bytes))
        blocks = np.resize(self._private, (batches * self._batch, self._block_bytes))
        for _ in range(self._capacity // (batches * self._bytes) + 2):
            self._store_blocks(blocks)

    def alternate(self, seconds: float) -> dict[str, float]:
        """Plain copies in turn with stores, then in turn with loads, in the same directions.

        Rates are medians, ratios the medians of each turn's ratio.
        """
        into, stores = self._in_turn(seconds / 2, self._copy_into_shared, self._store)
        out, loads = self._in_turn(seconds / 2, self._copy_from_shared, self._load)
        return {
            "limit_gbps": statistics.median(into + out),
            "store_gbps": statistics.median(stores),
            "load_gbps": statistics.median(loads),
            "store_ratio": _median_ratio(stores, into),
            "load_ratio": _median_ratio(loads, out),
        }

    def _in_turn(
        self, seconds: float, limit: Callable[[], None], measured: Callable[[], None]
    ) -> tuple[list[float], list[float]]:
        limits: list[float] = []
        rates: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(rates) < 3:
            limits.append(self._rate(limit))
            rates.append(self._rate(measured))
        return limits, rates

    def _copy_into_shared(self) -> None:
        np.copyto(self._next_shared(), self._private)

    def _copy_from_shared(self) -> None:
        np.copyto(self._private, self._next_shared())

    def _next_shared(self) -> ByteArray:
        self._turn += 1
        shared: ByteArray = self._shared[self._turn % len(self._shared)]
        return shared

    def _store(self) -> None:
        self._store_blocks(self._private)

    def _store_blocks(self, blocks: ByteArray) -> None:
        hashes = _hashes(self._next, len(blocks))
        self._next += 1
        statuses = self._namespace.store(hashes, blocks)
        assert set(statuses) == {BlockStatus.OK}, statuses
        for start in range(0, len(hashes), self._batch):
            self._stored.append(hashes[start : start + self._batch])

    def _load(self) -> None:
        self._stored.rotate(-1)
        statuses = self._namespace.load_into(self._stored[0], self._private)
        assert set(statuses) == {BlockStatus.OK}, statuses

    def _rate(self, call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return self._bytes / (time.perf_counter() - start) / 1e9


def _call_times(client: Client, namespace: Namespace) -> dict[str, float]:
    hashes = _hashes(-1, _LOOKUP_KEYS)
    known, first = _LOOKUP_KEYS, hashes[:1]
    block = np.zeros((1, namespace.spec.block_bytes[0]), dtype=np.uint8)
    namespace.store(first, block)
    small = client.namespace(NamespaceSpec(name="bench-lookup", block_bytes=(4096,)))
    blocks = np.zeros((known, 4096), dtype=np.uint8)
    assert set(small.store(hashes, blocks)) == {BlockStatus.OK}
    calls: dict[str, Callable[[], object]] = {
        "null_call_p50_us": lambda: _null_call(client),
        "lookup_16_p50_us": lambda: small.lookup(hashes[:16]),
        "lookup_8192_p50_us": lambda: small.lookup(hashes),
        "load_one_p50_us": lambda: namespace.load_into(first, block),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_CALLS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    assert small.lookup(hashes).matched == known
    return {name: statistics.median(times) * 1e6 for name, times in samples.items()}


def _null_call(client: Client) -> None:
    with client.connected() as connection:
        connection.null_call(1.0)


def _median_ratio(rates: list[float], limits: list[float]) -> float:
    return statistics.median([a / b for a, b in zip(rates, limits, strict=True)])


def _shared_memory(count: int, batch: int, block_bytes: int) -> ByteArray:
    """Memory as an arena has it: a populated memfd, [count, batch, block_bytes]."""
    size = count * batch * block_bytes
    fd = memory.create_memfd("kvtier-bench", size)
    mapped = memory.map_shared(fd, size, writable=True)
    memory.populate(fd, mapped, 0, size)
    os.close(fd)
    return mapped.reshape(count, batch, block_bytes)


def _hashes(seed: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(seed + 1)
    data = rng.bytes(count * _HASH_BYTES)
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]


def resident_bytes(pid: int) -> int:
    """VmRSS, the populated arena included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0

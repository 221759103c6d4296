"""`kvtier bench stream`: blocks over gRPC against the same bytes over a bare socket."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.bench.bare_socket import BareServer, BareSocket
from kvtier.bench.process import in_worker_process
from kvtier.client.client import Client
from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus
from kvtier.core.namespace import NamespaceSpec
from kvtier.testing.agent_process import AgentProcess

_HASH_BYTES = 32
_BATCHES_IN_ARENA = 6
_MIN_ARENA_BYTES = 512 << 20
_MIN_TURNS = 3


def run(block_bytes: int = 2 << 20, batch: int = 32, seconds: float = 5.0) -> dict[str, object]:
    """Starts an agent, and a worker process that has no shared memory; see `measure`."""
    capacity = max(_MIN_ARENA_BYTES, (_BATCHES_IN_ARENA + 1) * batch * block_bytes)
    settings = {
        "tiers.host.capacity": capacity,
        "leases.max_share": 1.0,
        "log.level": "warning",
    }
    with (
        tempfile.TemporaryDirectory(prefix="kvtier-bench-") as directory,
        BareServer(Path(directory)) as bare,
        AgentProcess(settings=settings) as agent,
    ):
        return in_worker_process(
            measure,
            address=agent.address,
            bare_path=bare.path,
            block_bytes=block_bytes,
            batch=batch,
            seconds=seconds,
        )


def measure(
    address: str, bare_path: str, block_bytes: int, batch: int, seconds: float
) -> dict[str, Any]:
    """GB/s are 1e9 bytes; medians of turns. A ratio is the median of each turn's ratio to the bare
    socket just before it, in the same direction."""
    spec = NamespaceSpec(name="bench", block_bytes=(block_bytes,))
    with (
        BareSocket(bare_path) as bare,
        Client(address, worker="bench", timeout_seconds=30.0, transport="stream") as client,
    ):
        transfers = _Transfers(client.namespace(spec), bare, block_bytes, batch)
        return {
            "block_bytes": block_bytes,
            "batch_blocks": batch,
            **transfers.alternate(seconds),
        }


class _Transfers:
    """Batches written and read by streams, each after as many bytes over the bare socket."""

    def __init__(
        self, namespace: Namespace, bare: BareSocket, block_bytes: int, batch: int
    ) -> None:
        self._namespace = namespace
        self._bare = bare
        self._batch = batch
        self._bytes = batch * block_bytes
        self._blocks = np.zeros((batch, block_bytes), np.uint8)
        self._blocks[:] = np.arange(batch, dtype=np.uint8)[:, None]
        self._stored: deque[list[bytes]] = deque(maxlen=_BATCHES_IN_ARENA)
        self._next = 0

    def alternate(self, seconds: float) -> dict[str, float]:
        for _ in range(_BATCHES_IN_ARENA + 1):  # from then on each store evicts
            self._write()
        sent, writes = self._in_turn(seconds / 2, self._bare.send, self._write)
        received, reads = self._in_turn(seconds / 2, self._bare.receive, self._read)
        return {
            "limit_gbps": statistics.median(sent + received),
            "write_gbps": statistics.median(writes),
            "read_gbps": statistics.median(reads),
            "write_ratio": _median_ratio(writes, sent),
            "read_ratio": _median_ratio(reads, received),
        }

    def _in_turn(
        self, seconds: float, limit: Callable[[Any], None], measured: Callable[[], None]
    ) -> tuple[list[float], list[float]]:
        limits: list[float] = []
        rates: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(rates) < _MIN_TURNS:
            limits.append(self._rate(lambda: limit(self._blocks)))
            rates.append(self._rate(measured))
        return limits, rates

    def _write(self) -> None:
        hashes = _hashes(self._next, self._batch)
        self._next += 1
        statuses = self._namespace.store(hashes, self._blocks)
        assert set(statuses) == {BlockStatus.OK}, statuses
        self._stored.append(hashes)

    def _read(self) -> None:
        self._stored.rotate(-1)
        statuses = self._namespace.load_into(self._stored[0], self._blocks)
        assert set(statuses) == {BlockStatus.OK}, statuses

    def _rate(self, call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return self._bytes / (time.perf_counter() - start) / 1e9


def _median_ratio(rates: list[float], limits: list[float]) -> float:
    return statistics.median([a / b for a, b in zip(rates, limits, strict=True)])


def _hashes(seed: int, count: int) -> list[bytes]:
    data = np.random.default_rng(seed).bytes(count * _HASH_BYTES)
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]

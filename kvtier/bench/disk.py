"""`kvtier bench disk`: stores down to DISK and loads from it, against plain direct transfers."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier import memory
from kvtier.bench.disk_agent import AGENT_DISK_BYTES, host_hits, recovery
from kvtier.bench.process import in_worker_process
from kvtier.client.admin import AdminClient
from kvtier.client.client import Client
from kvtier.config import AgentConfig
from kvtier.core.block import BlockStatus, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import ConfigError
from kvtier.memory import ByteArray
from kvtier.testing.agent_process import AgentProcess
from kvtier.tiers.disk.io import BlockIO, open_direct, read_fully, write_fully

_HASH_BYTES = 32
_TURN_BYTES = 2 << 30
_FILL_TURNS = 3
_FEWEST_TURNS = 3
_SPARE_BYTES = 128 << 20
_TIMEOUT_SECONDS = 60.0
Slots = Callable[[], AbstractContextManager[list[ByteArray]]]

_NAMESPACE: Final = "bench"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def run(
    path: Path, block_bytes: int = 2 << 20, batch: int = 64, seconds: float = 5.0
) -> dict[str, object]:
    """Measures below `path`, and leaves nothing there. Raises ConfigError if it cannot be used.

    See `measure`, and `disk_agent` for what DISK means to an agent.
    """
    batches = max(1, _TURN_BYTES // (batch * block_bytes))
    turn_bytes = batches * batch * block_bytes
    host_bytes = turn_bytes + turn_bytes // 4 + _SPARE_BYTES
    _require_memory(host_bytes + batch * block_bytes)
    _require_space(path, max((_FILL_TURNS + 1) * turn_bytes, AGENT_DISK_BYTES) + _SPARE_BYTES)
    depth = AgentConfig().tiers.disk.io_depth
    with _directory(path) as directory:
        settings = {
            "tiers.host.capacity": host_bytes,
            "tiers.host.memory_reserve": "1MiB",
            "tiers.disk.paths": directory / "blocks",
            "tiers.disk.capacity": _FILL_TURNS * turn_bytes,
            "tiers.disk.min_free": 0,
            "tiers.disk.io_depth": depth,
            "leases.max_share": 1.0,
            "log.level": "warning",
        }
        with AgentProcess(settings=settings) as agent:
            turns = in_worker_process(
                measure,
                address=agent.address,
                admin_address=agent.admin_address,
                agent_pid=agent.pid,
                file=directory / "limit",
                block_bytes=block_bytes,
                batch=batch,
                batches=batches,
                depth=depth,
                seconds=seconds,
            )
    with _directory(path) as directory:
        hits = host_hits(directory, seconds)
    with _directory(path) as directory:
        recovered = recovery(directory)
    return {
        "block_bytes": block_bytes,
        "batch_blocks": batch,
        "turn_bytes": turn_bytes,
        "depth": depth,
        **turns,
        **recovered,
        **hits,
    }


@contextmanager
def _directory(path: Path) -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=path.absolute())
    except OSError as error:
        raise ConfigError(f"--path {path}: {error.strerror}") from error
    with directory:
        yield Path(directory.name)


def _require_space(path: Path, needed_bytes: int) -> None:
    try:
        free = BlockIO().free_bytes(path)
    except OSError as error:
        raise ConfigError(f"--path {path}: {error.strerror}") from error
    if free < needed_bytes:
        raise ConfigError(
            f"--path {path}: {free >> 20} MiB are free, {needed_bytes >> 20} MiB are needed; "
            "smaller blocks or batches need less"
        )


def _require_memory(needed_bytes: int) -> None:
    available = memory.available_bytes()
    if available < needed_bytes:
        raise ConfigError(
            f"{available >> 20} MiB of memory are available, {needed_bytes >> 20} MiB are needed; "
            "smaller blocks or batches need less"
        )


def measure(
    address: str,
    admin_address: str,
    agent_pid: int,
    file: Path,
    block_bytes: int,
    batch: int,
    batches: int,
    depth: int,
    seconds: float,
) -> dict[str, Any]:
    """What the worker process does, in turns of `batches`. GB/s are 1e9 bytes.

    Rates are medians; ratios are medians of each turn's, beside a limit's turn next to it. DISK is
    full when its turns begin, so that what is written to is written over; `first_store` is before
    that, and compared with a new file, the time to allocate it included.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    spec = NamespaceSpec(name=_NAMESPACE, block_bytes=(block_bytes,))
    with (
        Client(address, worker="bench", timeout_seconds=_TIMEOUT_SECONDS) as client,
        AdminClient(admin_address, timeout_seconds=_TIMEOUT_SECONDS) as admin,
    ):
        turn_bytes = batch * batches * block_bytes
        blocks = _Blocks(client, admin, spec, batch, batches, agent_pid)
        limit = _Limit(file, blocks.slots, turn_bytes, depth)
        first = [_pair(limit.write_new, blocks.store) for _ in range(_FILL_TURNS)]
        blocks.cpu_seconds = 0.0
        stores: list[tuple[float, float]] = []
        loads: list[tuple[float, float]] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(loads) < _FEWEST_TURNS:
            is_limit_first = len(loads) % 2 == 0
            stores.append(_pair(limit.write, blocks.store, is_limit_first=is_limit_first))
            blocks.leave_host()
            loads.append(_pair(limit.read, blocks.load, is_limit_first=is_limit_first))
    moved_gb = turn_bytes * (len(stores) + len(loads)) / 1e9
    # The first turn has to make HOST grow, too.
    return {
        "turns": len(loads),
        **_rates("first_store", "limit_first_write", turn_bytes, first[1:]),
        **_rates("store", "limit_write", turn_bytes, stores),
        **_rates("load", "limit_read", turn_bytes, loads),
        "cpu_seconds_per_gb": blocks.cpu_seconds / moved_gb,
        "is_direct": limit.is_direct,
    }


def _pair(
    limit: Callable[[], float], measured: Callable[[], float], *, is_limit_first: bool = True
) -> tuple[float, float]:
    """Seconds of both; what comes second may find the device exhausted or warmed up."""
    if is_limit_first:
        limit_seconds = limit()
        return limit_seconds, measured()
    measured_seconds = measured()
    return limit(), measured_seconds


def _rates(
    name: str, limit_name: str, turn_bytes: int, pairs: list[tuple[float, float]]
) -> dict[str, float]:
    limits, measured = zip(*pairs, strict=True)
    return {
        f"{limit_name}_gbps": turn_bytes / statistics.median(limits) / 1e9,
        f"{name}_gbps": turn_bytes / statistics.median(measured) / 1e9,
        f"{name}_ratio": statistics.median([limit / own for limit, own in pairs]),
    }


class _Limit:
    """Plain transfers between the slots of a turn and one file; seconds of each.

    `depth` threads move one block with each call; what is written is synced, as a flush does.
    `slots` gives HOST's own memory: how its pages lie decides how long a transfer takes.
    """

    def __init__(self, file: Path, slots: Slots, size_bytes: int, depth: int) -> None:
        self._file = file
        self._slots = slots
        self._size_bytes = size_bytes
        self._depth = depth
        self._io = BlockIO()
        self._fd = -1
        self.is_direct = True
        self._threads = ThreadPoolExecutor(depth)

    def write_new(self) -> float:
        """Into a new file, made and allocated in this time."""
        if self._fd >= 0:
            self._io.close(self._fd)
            self._io.unlink(self._file)
        start = time.perf_counter()
        self._fd = self._io.open(self._file, os.O_RDWR | os.O_CREAT)
        self._io.allocate(self._fd, self._size_bytes)
        self._io.close(self._fd)
        self._fd, self.is_direct = open_direct(self._io, self._file, os.O_RDWR)
        return time.perf_counter() - start + self.write()

    def write(self) -> float:
        with self._slots() as cells:
            start = time.perf_counter()
            self._transfer(write_fully, cells)
            self._io.sync(self._fd)
            return time.perf_counter() - start

    def read(self) -> float:
        with self._slots() as cells:
            start = time.perf_counter()
            self._transfer(read_fully, cells)
            return time.perf_counter() - start

    def _transfer(self, call: Callable[..., None], cells: list[ByteArray]) -> None:
        def work(first: int) -> None:
            for index in range(first, len(cells), self._depth):
                call(self._io, self._fd, [cells[index]], index * cells[index].nbytes)

        list(self._threads.map(work, range(self._depth)))


class _Blocks:
    """The same through the agent; `cpu_seconds` is what both processes used in these times."""

    def __init__(
        self,
        client: Client,
        admin: AdminClient,
        spec: NamespaceSpec,
        batch: int,
        batches: int,
        agent_pid: int,
    ) -> None:
        self._admin = admin
        self._namespace = client.namespace(spec)
        self._agent_pid = agent_pid
        self._private = np.zeros((batch, spec.block_bytes[0]), dtype=np.uint8)
        self._private[:] = np.arange(batch, dtype=np.uint32).astype(np.uint8)[:, None]
        self._rng = np.random.default_rng(0)
        self._batches = batches
        self._turn: list[list[bytes]] = []
        self.cpu_seconds = 0.0

    def store(self) -> float:
        """New batches, from the first store until the flush returns."""
        batch = len(self._private)
        self._turn = [_hashes(self._rng, batch) for _ in range(self._batches)]

        def store() -> None:
            for hashes in self._turn:
                statuses = self._namespace.store(hashes, self._private)
                assert set(statuses) == {BlockStatus.OK}, statuses
            self._admin.flush(Tier.DISK)

        return self._timed(store)

    @contextmanager
    def slots(self) -> Iterator[list[ByteArray]]:
        """The memory of a turn in HOST, reserved for a while; what was there is evicted."""
        with ExitStack() as stack:
            cells: list[ByteArray] = []
            for _ in range(self._batches):
                hashes = _hashes(self._rng, len(self._private))
                reservation = stack.enter_context(
                    self._namespace.reserve(hashes, ttl_seconds=_TIMEOUT_SECONDS)
                )
                cells += [cell for cell in reservation.cells if cell is not None]
            assert len(cells) == self._batches * len(self._private)
            yield cells

    def leave_host(self) -> None:
        """What the last turn stored is on DISK only."""
        self._admin.evict_blocks(f"default/{_NAMESPACE}", tiers=[Tier.HOST])
        for hashes in self._turn:
            found = self._namespace.lookup(hashes)
            assert found.runs == ((Tier.DISK, len(hashes)),), found

    def load(self) -> float:
        def load() -> None:
            for hashes in self._turn:
                statuses = self._namespace.load_into(hashes, self._private)
                assert set(statuses) == {BlockStatus.OK}, statuses

        return self._timed(load)

    def _timed(self, work: Callable[[], None]) -> float:
        cpu, start = self._cpu_seconds(), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        self.cpu_seconds += self._cpu_seconds() - cpu
        return seconds

    def _cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self._agent_pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return time.process_time() + (int(user) + int(system)) / _TICKS_PER_SECOND


def _hashes(rng: np.random.Generator, count: int) -> list[bytes]:
    data = rng.bytes(count * _HASH_BYTES)
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]

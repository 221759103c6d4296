"""`kvtier bench cluster`: blocks to and from a server, against a bare socket and redis-py."""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvtier import memory
from kvtier.bench.cluster_contestants import (
    CONNECTIONS,
    IDENTITY,
    LANE,
    TTL_SECONDS,
    Blocks,
    Contestant,
    Limit,
    RedisPy,
    Slots,
    new_hashes,
    soon,
)
from kvtier.errors import ConfigError
from kvtier.tiers.cluster.blocks import ClusterBlocks
from kvtier.tiers.cluster.deadline import until
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.failure import REDIS_ERRORS, ClusterDownError, cluster_down
from kvtier.tiers.cluster.sealing import Sealer
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings, connect
from kvtier.tiers.cluster.url import ClusterUrl, Deployment, Transport, parse_url

_TURN_BYTES = 128 << 20
_MAX_TURN_BLOCKS = 2048
_FEWEST_TURNS = 3
#: Values of a turn, by each of the three; what the server sets aside for one, relatively.
_CONTESTANTS, _VALUE_SHARE = 3, 1.3
_SPARE_BYTES = 128 << 20
_EXISTS_BLOCKS = 512
_CALLS = 300


def run(
    url: str = "embedded", block_bytes: int = 2 << 20, batch: int = 16, seconds: float = 5.0
) -> dict[str, object]:
    """Measures a server, and leaves nothing there; see `_Measurement`.

    Raises ConfigError if it cannot be measured: it is one server, without TLS, with room.
    """
    call_blocks = CONNECTIONS * batch
    turn_blocks = min(_TURN_BYTES // block_bytes, _MAX_TURN_BLOCKS) // call_blocks * call_blocks
    turn_blocks = max(turn_blocks, call_blocks)
    stored_bytes = int(_CONTESTANTS * _VALUE_SHARE * turn_blocks * block_bytes) + _SPARE_BYTES
    target = _target(url)
    is_embedded = target.deployment is Deployment.EMBEDDED
    own_bytes = _CONTESTANTS * turn_blocks * block_bytes
    _require("of memory are available", memory.available_bytes(), own_bytes + stored_bytes)
    with ExitStack() as stack:
        if is_embedded:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-bench-"))
            server = stack.enter_context(EmbeddedValkey(Path(directory) / "valkey", stored_bytes))
            target = parse_url(server.url)
        try:
            with _store(target, stored_bytes) as (store, prefix):
                slots = Slots(turn_blocks, block_bytes)
                with _Measurement(target, store, prefix, slots, batch) as measurement:
                    measured = measurement.take(seconds)
        except REDIS_ERRORS as error:
            reason = cluster_down(error).strerror
            raise ConfigError(f"--url {target.redacted()}: {reason}") from error
    return {
        "url": "embedded" if is_embedded else target.redacted(),
        "block_bytes": block_bytes,
        "batch_blocks": batch,
        "turn_bytes": turn_blocks * block_bytes,
        "connections": CONNECTIONS,
        **measured,
    }


def _target(url: str) -> ClusterUrl:
    try:
        target = parse_url(url)
    except ConfigError as error:
        raise ConfigError(f"--url: {error}") from error
    if target.deployment is Deployment.EMBEDDED:
        return target
    if target.deployment is not Deployment.SERVER or target.transport is Transport.TLS:
        raise ConfigError(
            f"--url {target.redacted()}: what is measured is one server without TLS, as "
            "redis://HOST:PORT or unix:///PATH"
        )
    return target


def _require(what: str, free_bytes: int, needed_bytes: int) -> None:
    if free_bytes < needed_bytes:
        raise ConfigError(
            f"{free_bytes >> 20} MiB {what}, {needed_bytes >> 20} MiB are needed; "
            "smaller blocks or batches need less"
        )


@contextmanager
def _store(target: ClusterUrl, needed_bytes: int) -> Iterator[tuple[ClusterStore, str]]:
    """With a prefix under which nothing remains."""
    store = ClusterStore(ClusterSettings(target, connections=CONNECTIONS))
    prefix = f"kvtier-bench-{secrets.token_hex(4)}"
    try:
        report = store.check(soon())
        if report.maxmemory_bytes:
            free_bytes = report.maxmemory_bytes - report.used_bytes
            _require("of the server's maxmemory are free", free_bytes, needed_bytes - _SPARE_BYTES)
        try:
            yield store, prefix
        finally:
            with suppress(ClusterDownError):  # it says why already, and values have a TTL
                names = list(store.scan(f"{prefix}:".encode(), soon()))
                store.delete(names, soon())
    finally:
        store.close()


class _Rates(NamedTuple):
    """GB/s in one turn."""

    limit: float
    blocks: float
    redispy: float


class _Measurement:
    """The three in turns, each with a thread for each connection."""

    def __init__(
        self, target: ClusterUrl, store: ClusterStore, prefix: str, slots: Slots, batch: int
    ) -> None:
        self._target = target
        self._slots = slots
        self._cluster = ClusterBlocks(
            store, Sealer({}, None), key_prefix=prefix, ttl_seconds=TTL_SECONDS
        )
        self._blocks = Blocks(self._cluster, slots, batch)
        with ExitStack() as stack:
            self._limit = stack.enter_context(closing(Limit(target, prefix, slots)))
            self._redispy = stack.enter_context(closing(RedisPy(target, prefix, slots)))
            # They end first: what is sent and not answered might be stored after the cleaning up.
            self._threads = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
            self._stack = stack.pop_all()

    def __enter__(self) -> _Measurement:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def take(self, seconds: float) -> dict[str, Any]:
        """GB/s are 1e9 bytes of blocks, times microseconds.

        Rates and times are medians; ratios are medians of each turn's, or of each pair of calls'.
        """
        gets, sets = self._alternate(seconds)
        self._check()
        return {
            "turns": len(gets),
            **_rates("get", gets),
            **_rates("set", sets),
            **self._call_times(),
        }

    def _alternate(self, seconds: float) -> tuple[list[_Rates], list[_Rates]]:
        contestants: list[Contestant] = [self._limit, self._blocks, self._redispy]
        gets: list[_Rates] = []
        sets: list[_Rates] = []
        self._turn(contestants, "set")  # makes the server grow
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(gets) < _FEWEST_TURNS:
            # What comes next may find caches warm or cold.
            is_forward = len(gets) % 2 == 0
            sets.append(self._turn(contestants, "set", is_forward=is_forward))
            gets.append(self._turn(contestants, "get", is_forward=is_forward))
        return gets, sets

    def _turn(
        self, contestants: Sequence[Contestant], verb: str, *, is_forward: bool = True
    ) -> _Rates:
        step = 1 if is_forward else -1
        rates = [self._rate(getattr(each, verb)) for each in contestants[::step]]
        limit, blocks, redispy = rates[::step]
        return _Rates(limit, blocks, redispy)

    def _rate(self, move: Callable[[int, range], None]) -> float:
        count = len(self._slots)
        share = count // CONNECTIONS
        workers = range(CONNECTIONS)
        spans = [range(worker * share, (worker + 1) * share) for worker in workers]
        start = time.perf_counter()
        list(self._threads.map(move, workers, spans))
        return count * self._slots.block_bytes / (time.perf_counter() - start) / 1e9

    def _check(self) -> None:
        """That what was measured moves the right bytes."""
        for cell in self._slots.cells:
            cell.fill(0)
        self._rate(self._blocks.get)
        for source, cell in zip(self._slots.sources, self._slots.cells, strict=True):
            assert np.array_equal(source, cell)

    def _call_times(self) -> dict[str, float]:
        """Of EXISTS for 512 blocks, and of a command that does nothing."""
        hashes = self._blocks.hashes[:_EXISTS_BLOCKS]
        hashes += new_hashes(_EXISTS_BLOCKS - len(hashes))
        topology = connect(ClusterSettings(self._target))
        [server] = topology.servers()

        def null_command() -> None:
            # As every call of the store takes one from the pool.
            with until(soon()), server.connection() as connection:
                connection.call("PING")

        def exist() -> None:
            self._cluster.exist(IDENTITY, LANE, hashes, soon())

        try:
            pairs = [(_seconds(null_command), _seconds(exist)) for _ in range(_CALLS)]
        finally:
            topology.close()
        nulls, exists = zip(*pairs, strict=True)
        return {
            "null_command_us": statistics.median(nulls) * 1e6,
            "exists_512_us": statistics.median(exists) * 1e6,
            "exists_512_ratio": statistics.median([b / a for a, b in pairs]),
        }


def _rates(verb: str, turns: Sequence[_Rates]) -> dict[str, float]:
    return {
        f"limit_{verb}_gbps": statistics.median([each.limit for each in turns]),
        f"redispy_{verb}_gbps": statistics.median([each.redispy for each in turns]),
        f"{verb}_gbps": statistics.median([each.blocks for each in turns]),
        f"{verb}_ratio": statistics.median([each.blocks / each.limit for each in turns]),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

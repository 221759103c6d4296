"""`kvtier bench metadata`: the agent's books, without sockets: memory, inserts, lag of the loop."""

from __future__ import annotations

import asyncio
import time
from array import array
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.agent.sessions.sessions import Access, Session
from kvtier.bench.process import in_worker_process
from kvtier.config import AgentConfig
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.daemon import Agent, tune_interpreter

_BLOCK_BYTES = 4096
_BATCH = 256
_LONG_BATCH = 8192
_CHAIN_BATCHES = 16
_PROBE_SECONDS = 0.001
_HASH_BYTES = 32


def run(blocks: int = 1_000_000, seconds: float = 5.0) -> dict[str, object]:
    """Measures in a process of its own; blocks are of 4 KiB, keys of 32 bytes."""
    return in_worker_process(measure, blocks=blocks, seconds=seconds)


def measure(blocks: int, seconds: float) -> dict[str, Any]:
    tune_interpreter()
    return asyncio.run(_measure(blocks, seconds))


async def _measure(blocks: int, seconds: float) -> dict[str, Any]:
    table_bytes = blocks * 8 + (1 << 20)
    config = AgentConfig.model_validate(
        {
            "tiers": {"host": {"capacity": blocks * _BLOCK_BYTES + table_bytes}},
            "leases": {"max_share": 1.0},
        }
    )
    agent = Agent(config)
    try:
        load = _Load(agent)
        before = _private_bytes()
        while load.block_count < blocks:
            await load.store()
        per_block = (_private_bytes() - before) / load.block_count
        inserts = await load.inserts_per_second(seconds)
        lags = await load.lags(seconds)
        agent.host.check_integrity()
    finally:
        await agent.stop()
    return {
        "blocks": load.block_count,
        "bytes_per_block": per_block,
        "inserts_per_second": inserts,
        "loop_lag_p50_ms": float(np.quantile(lags, 0.5)) * 1e3,
        "loop_lag_p999_ms": float(np.quantile(lags, 0.999)) * 1e3,
        "loop_lag_max_ms": max(lags) * 1e3,
        "loop_lag_samples": len(lags),
    }


class _Load:
    """What workers would ask for: stores of chains with eviction, loads, long lookups."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._rng = np.random.default_rng(0)
        self._recent: list[BlockKeys] = []
        self._long = BlockKeys(Lane(), ())
        self._parent, self._position = b"", 0
        access = Access(frozenset("*"))
        self._attachment = agent.sessions.attach(bytes(16), 0, 0, 0, access)
        self._session = self.open()

    def open(self) -> Session:
        spec = NamespaceSpec(name="bench", block_bytes=(_BLOCK_BYTES,))
        session, _ = self._agent.sessions.open(self._attachment.token, spec, "bench")
        return session

    @property
    def block_count(self) -> int:
        return sum(len(each.residency) for each in self._session.namespace.classes_of(Tier.HOST))

    async def store(self) -> None:
        """One batch: the next part of a chain, or the beginning of one."""
        if self._position >= _BATCH * _CHAIN_BATCHES:
            self._parent, self._position = b"", 0
        keys = BlockKeys(Lane(), self._hashes(_BATCH), self._parent, self._position)
        self._parent, self._position = keys.hashes[-1], self._position + _BATCH
        storing = self._agent.storing
        granted = await storing.reserve(self._session, [keys])
        statuses = await storing.commit(self._session, granted.lease.lease_id)
        assert statuses == [BlockStatus.OK] * _BATCH
        self._recent = [*self._recent[-100:], keys]

    async def load(self) -> None:
        keys = self._recent[self._rng.integers(len(self._recent))]
        granted = await self._agent.loading.load(self._session, [keys])
        self._agent.grants.release(granted.lease)

    def remember(self) -> None:
        """Makes the last blocks the keys of long lookups."""
        hashes = tuple(each for keys in self._recent for each in keys.hashes)[-_LONG_BATCH:]
        self._long = BlockKeys(Lane(), hashes)

    async def lookup(self) -> None:
        await self._agent.loading.lookup(self._session, [self._long])

    async def inserts_per_second(self, seconds: float) -> float:
        """Every store evicts as much as it adds."""
        start, stored = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            await self.store()
            stored += _BATCH
        return stored / (time.perf_counter() - start)

    async def lags(self, seconds: float) -> array[float]:
        """How much later than due a timer of 1 ms fires while four kinds of work go on."""
        self.remember()
        lags, end = array("d"), time.perf_counter() + seconds
        work = [
            asyncio.create_task(_repeat(each, end)) for each in (self.store, self.load, self.lookup)
        ]
        loop = asyncio.get_running_loop()
        for _ in count():
            due = loop.time() + _PROBE_SECONDS
            await asyncio.sleep(_PROBE_SECONDS)
            lags.append(max(0.0, loop.time() - due))
            if time.perf_counter() > end:
                break
        await asyncio.gather(*work)
        return lags

    def _hashes(self, number: int) -> tuple[bytes, ...]:
        data = self._rng.bytes(number * _HASH_BYTES)
        return tuple(np.frombuffer(data, f"V{_HASH_BYTES}").tolist())


async def _repeat(work: Any, end: float) -> None:
    while time.perf_counter() < end:
        await work()
        await asyncio.sleep(0)


def _private_bytes() -> int:
    """Anonymous resident memory: the arena is not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0

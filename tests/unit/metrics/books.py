"""An agent in this process, without sockets, whose numbers are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kvtier.agent.sessions.sessions import Access, Session
from kvtier.config import AgentConfig
from kvtier.core.block import BlockKeys, Lane
from kvtier.core.namespace import NamespaceSpec
from kvtier.daemon import Agent
from kvtier.metrics.samples import Samples

BLOCK_BYTES = 4096


class Books:
    """What workers would do, and what the numbers say of it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        attach = agent.sessions.attach
        self._attachment = attach(bytes(16), 0, 0, 0, Access(frozenset("*")))

    def open(self, name: str = "m", **fields: Any) -> Session:
        fields = {"block_bytes": (BLOCK_BYTES,), "block_tokens": 16, **fields}
        spec = NamespaceSpec(name=name, **fields)
        session, _ = self.agent.sessions.open(self._attachment.token, spec, "worker")
        return session

    def disconnect(self) -> None:
        """All sessions end, and another worker is there."""
        self.agent.sessions.process_gone(self._attachment)
        attach = self.agent.sessions.attach
        self._attachment = attach(bytes(16), 0, 0, 0, Access(frozenset("*")))

    async def store(self, session: Session, hashes: Sequence[bytes], lane: Lane = Lane()) -> None:  # noqa: B008
        keys = [BlockKeys(lane, tuple(hashes))]
        granted = await self.agent.storing.reserve(session, keys)
        await self.agent.storing.commit(session, granted.lease.lease_id)

    async def lookup(
        self,
        session: Session,
        hashes: Sequence[bytes],
        lane: Lane = Lane(),  # noqa: B008
    ) -> None:
        await self.agent.loading.lookup(session, [BlockKeys(lane, tuple(hashes))])

    async def load(
        self,
        session: Session,
        hashes: Sequence[bytes],
        lane: Lane = Lane(),  # noqa: B008
    ) -> None:
        keys = [BlockKeys(lane, tuple(hashes))]
        granted = await self.agent.loading.load(session, keys)
        self.agent.grants.release(granted.lease)

    async def collect(self) -> Samples:
        assert self.agent.metrics is not None
        return await self.agent.metrics.collector.collect()

    async def value(self, name: str, *labels: str) -> float:
        return (await self.collect()).values[f"kvtier_{name}"][labels]


@asynccontextmanager
async def books(**settings: Any) -> AsyncIterator[Books]:
    """By default HOST has room for a thousand blocks."""
    config = AgentConfig.model_validate(
        {"tiers": {"host": {"capacity": 8 << 20, "memory_reserve": 0}}, **settings}
    )
    agent = Agent(config)
    try:
        yield Books(agent)
    finally:
        await agent.stop()

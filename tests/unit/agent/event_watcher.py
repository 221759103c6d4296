"""A watcher in the agent's own process, which replays what it is sent."""

from __future__ import annotations

import asyncio
from typing import Self

from kvtier.agent.serving.events import Events
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.sessions.sessions import ANY_TENANT, Access
from kvtier.client.residents import Residents
from kvtier.core.block import Lane, Tier
from kvtier.core.residency import NONE
from kvtier.errors import KvtierError
from kvtier.rpc.cache_events import CacheEventsService
from kvtier.rpc.server import Call
from kvtier.v1 import cache_events_pb2 as pb
from tests.unit.agent.disk_agent import DiskAgent, until

EVERYTHING = Access(frozenset({ANY_TENANT}))


def events_of(agent: DiskAgent, kept: int = 4096, max_logs: int = 8, **seconds: float) -> Events:
    """Of an agent's namespaces, without delay."""
    seconds = {"gather_seconds": 0.0, "bookmark_seconds": 60.0, **seconds}
    return Events(agent.namespaces, kept=kept, max_logs=max_logs, **seconds)


def service_of(
    events: Events, namespaces: Namespaces, access: Access | None = EVERYTHING
) -> CacheEventsService:
    return CacheEventsService(events, namespaces, access)


class Watcher:
    """Replays until it is closed, or the stream fails; an async context manager."""

    def __init__(
        self,
        service: CacheEventsService,
        name: str = "default/model",
        known: Residents | None = None,
    ) -> None:
        self.residents = known or Residents(name)
        self.messages: list[pb.WatchEventsResponse] = []
        self.error: KvtierError | None = None
        self._service = service
        self._may_read = asyncio.Event()
        self._may_read.set()

    def pause(self) -> None:
        """From the next message on it does not read."""
        self._may_read.clear()

    def go_on(self) -> None:
        self._may_read.set()

    async def _run(self) -> None:
        try:
            async for data in self._service.WatchEvents(self.residents.request(), Call()):
                message = pb.WatchEventsResponse.FromString(data)
                self.messages.append(message)
                self.residents.take(message)
                await self._may_read.wait()
        except KvtierError as error:
            self.error = error

    @property
    def stored(self) -> int:
        """Blocks that came, as messages tell; snapshots among them."""
        return sum(
            len(event.blocks_stored.keys.hashes) // event.blocks_stored.keys.hash_bytes
            for message in self.messages
            for event in message.events
            if event.HasField("blocks_stored")
        )

    async def agrees(self, agent: DiskAgent) -> None:
        """Returns when it knows exactly what is there. Raises AssertionError at a deadline."""

        def knows() -> bool:
            assert self.error is None, self.error
            return self.residents.is_complete and set(self.residents) == held(agent)

        await until(knows)

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._run())
        await until(lambda: (self.messages and self.residents.is_complete) or self.error)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def held(agent: DiskAgent, name: str = "default/model") -> set[tuple[Tier, Lane, bytes]]:
    """What is there, by the books."""
    return {
        (tier, *each.residency.describe(row))
        for namespace in agent.namespaces.select(name)
        for tier in namespace.tiers
        for each in namespace.classes_of(tier)
        for row in range(each.residency.row_count)
        if each.residency.slot[row] != NONE
    }

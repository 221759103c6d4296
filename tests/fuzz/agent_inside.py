"""An agent in this process, whose handlers are called without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.config import load_config
from kvtier.core.attach import DirectCall
from kvtier.core.block import Tier
from kvtier.daemon import Agent
from kvtier.daemon.socket_directory import SocketDirectory
from kvtier.rpc.cache_admin import CacheAdminService
from kvtier.rpc.cache_inspection import CacheInspectionService
from kvtier.rpc.cache_listing import CacheListingService
from kvtier.rpc.direct import DirectCalls
from kvtier.rpc.server import Call, parsed, status_of
from tests.fuzz.requests import BLOCK_CACHE, CACHE_ADMIN

_CAPACITY = 32 << 20
_CALL_MS = 100
_STREAM_SECONDS = 0.02
_STREAM_MESSAGES = 64


class _Operators(CacheAdminService, CacheInspectionService, CacheListingService):
    """All methods of CacheAdmin."""

    def __init__(self, agent: Agent) -> None:
        CacheAdminService.__init__(
            self,
            agent.identity,
            agent.admission,
            agent.upkeep,
            agent.namespaces,
            agent.sessions,
            agent.leases,
            agent.pins,
            agent.history,
            warming=agent.warming,
        )
        CacheInspectionService.__init__(
            self, agent.identity, agent.namespaces, agent.explaining, agent.recorder
        )
        CacheListingService.__init__(self, agent.identity, agent.namespaces, agent.seen)


class AgentInside:
    """Answers with a status code, 0 for OK; a bug of a handler is INTERNAL, as over a socket."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        operators = _Operators(agent)
        self._servicers: dict[str, tuple[ServiceDescriptor, Any]] = {
            BLOCK_CACHE.full_name: (BLOCK_CACHE, agent.block_cache),
            CACHE_ADMIN.full_name: (CACHE_ADMIN, operators),
        }
        self._direct = {
            name: DirectCalls(service, servicer, agent.admission)
            for name, (service, servicer) in self._servicers.items()
        }

    async def call(self, service: str, method: str, session: bytes, data: bytes) -> tuple[int, Any]:
        """One call, and the answer to it if it has one."""
        descriptor, servicer = self._servicers[service]
        found = descriptor.methods_by_name[method]
        if found.client_streaming or found.server_streaming:
            return await self._stream(found, getattr(servicer, method), session, data), None
        code, body = await self._direct[service].answer(DirectCall(method, session, _CALL_MS, data))
        answer: type[Message] = GetMessageClass(found.output_type)
        return code, None if code else answer.FromString(body)

    async def _stream(self, method: Any, behaviour: Any, session: bytes, data: bytes) -> int:
        """A stream is closed after a moment, as if its client had gone."""
        call = Call(session, _CALL_MS / 1000)
        try:
            async with asyncio.timeout(_STREAM_SECONDS):
                if method.client_streaming:
                    await behaviour(_messages(data), call)
                    return 0
                request = parsed(GetMessageClass(method.input_type), data)
                async with aclosing(behaviour(request, call)) as answers:
                    seen = 0
                    async for _ in answers:
                        seen += 1
                        if seen == _STREAM_MESSAGES:
                            break
        except TimeoutError:
            return 0
        except Exception as error:
            return status_of(method, error)[0]
        return 0

    async def recovered(self) -> None:
        """Returns when DISK has been read."""
        while not all(task.done() for task in self.agent._tasks):
            await asyncio.wait(self.agent._tasks, timeout=0.1)
            if self.agent.disk is None or self.agent.disk.is_recovered:
                return

    async def restore(self) -> None:
        """Whatever operators did: it takes work, and has its size again."""
        self.agent.upkeep.resume()
        self.agent.upkeep.resize(Tier.HOST, _CAPACITY)
        self.agent.upkeep.resize(Tier.DISK, 2 * _CAPACITY)

    def audit(self) -> None:
        """The books agree."""
        self.agent.host.check_integrity()
        if self.agent.disk:
            self.agent.disk.tier.check_integrity()


async def _messages(data: bytes) -> AsyncIterator[bytes]:
    """One message; it may be cut, so that it is several."""
    yield data


@asynccontextmanager
async def agent_inside(directory: Path) -> AsyncIterator[AgentInside]:
    settings = {
        "socket_dir": directory,
        "tiers.host.capacity": _CAPACITY,
        "tiers.disk.paths": directory / "disk",
        "tiers.disk.capacity": 2 * _CAPACITY,
        "tiers.host.memory_reserve": 0,
        "tiers.disk.min_free": 0,
        "limits.max_sessions": 64,
        "limits.max_namespaces": 64,
        "leases.max_share": 0.2,
        "prefetch.read_ahead": 4,
    }
    assignments = [f"{key}={value}" for key, value in settings.items()]
    agent = Agent(load_config(None, {}, assignments).config)
    sockets = SocketDirectory(directory, None)
    try:
        await agent.start(sockets)
        inside = AgentInside(agent)
        await inside.recovered()
        yield inside
    finally:
        await agent.stop()
        sockets.close()

"""A worker's connection to an agent, on an event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from kvtier.client.async_namespace import AsyncNamespace
from kvtier.client.async_service import AsyncService
from kvtier.client.connection import SESSION_METADATA
from kvtier.client.endpoint import Tls, endpoint_of
from kvtier.client.sessions import OpenSessions
from kvtier.client.streaming import Call, Read, Step, Steps
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import (
    AgentUnavailableError,
    DeadlineExceededError,
    KvtierError,
    SessionLostError,
    UnauthenticatedError,
)
from kvtier.sockets import WORKER_SOCKET, default_address
from kvtier.v1 import block_cache_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 1.0
#: After these further calls would wait too.
_SUSPENDING = (AgentUnavailableError, DeadlineExceededError)


class AsyncClient:
    """As `Client`, for one event loop; bytes of blocks travel by streams.

    An agent that is missing, dying or hung costs one call one timeout. From then on calls fail at
    once with AgentUnavailableError, while a task asks for the agent until it answers. Use it as an
    asynchronous context manager, or close it. Arguments are those of `Client`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        worker: str = "",
        timeout_seconds: float = 1.0,
        token: str | None = None,
        tls: Tls | Literal["insecure"] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        if address is None:
            address = environ.get("KVTIER_ADDRESS") or default_address(environ, WORKER_SOCKET)
        self._endpoint = endpoint_of(address, token, tls, environ)
        self.address = self._endpoint.target
        self.worker = worker or f"pid {os.getpid()}"
        self.timeout_seconds = timeout_seconds
        self._sessions = OpenSessions()
        self._service: AsyncService | None = None
        self._restorer: asyncio.Task[None] | None = None
        self._reason = ""
        self._closed = False

    def namespace(self, spec: NamespaceSpec) -> AsyncNamespace:
        """The verbs on one namespace; it is registered with the agent at the first call."""
        return AsyncNamespace(self, spec)

    async def run(self, spec: NamespaceSpec, steps: Steps[T]) -> T:
        """Takes the steps one after the other, each within the timeout."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(spec, step)
                except KvtierError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        except _SUSPENDING as error:
            self._suspend(error)
            raise

    async def _perform(self, spec: NamespaceSpec, step: Step) -> Any:
        """One step, in another session if that of before has ended: its answer."""
        service = self._connected()
        token = await self._session(service, spec)
        try:
            return await self._exchange(service, token, step)
        except (SessionLostError, UnauthenticatedError):  # it ended, or was another connection's
            self._sessions.forget(spec, token)
            return await self._exchange(service, await self._session(service, spec), step)

    async def _exchange(self, service: AsyncService, session: bytes, step: Step) -> Any:
        metadata = ((SESSION_METADATA, session),)
        timeout_seconds = self.timeout_seconds
        if isinstance(step, Call):
            return await service.call(step.method, step.request, timeout_seconds, metadata)
        if isinstance(step, Read):
            return await service.receive("ReadBlocks", step, timeout_seconds, metadata)
        return await service.send("WriteBlocks", step.messages(), timeout_seconds, metadata)

    async def _session(self, service: AsyncService, spec: NamespaceSpec) -> bytes:
        token = self._sessions.find(spec)
        if token is not None:
            return token
        request = self._sessions.request(spec, self.worker)
        answer = await service.call("OpenSession", request, self.timeout_seconds)
        return self._sessions.opened(spec, answer)

    def _connected(self) -> AsyncService:
        if self._closed:
            raise AgentUnavailableError("the client is closed")
        if self._restorer is not None:
            raise AgentUnavailableError(f"no agent at {self.address}: {self._reason}")
        if self._service is None:  # here, because a channel belongs to the loop it is made on
            self._service = self._connect()
        return self._service

    def _connect(self) -> AsyncService:
        """A new channel, with the certificates that are there now."""
        return AsyncService(self._endpoint, pb.DESCRIPTOR.services_by_name["BlockCache"])

    def _suspend(self, error: KvtierError) -> None:
        if self._restorer is None and not self._closed:
            self._reason = str(error)
            self._restorer = asyncio.get_running_loop().create_task(self._restore())
            log.warning("kvtier: no agent at %s: %s", self.address, self._reason)

    async def _restore(self) -> None:
        """Asks until the agent answers, each time over a new channel, then ends."""
        delay = 0.0
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            try:
                if self._service is not None:  # other calls over it end within the timeout
                    await self._service.close(self.timeout_seconds)
                    self._service = None
                self._service = self._connect()
                request = pb.GetCapabilitiesRequest()
                await self._service.call("GetCapabilities", request, self.timeout_seconds)
            except KvtierError as error:
                self._reason = str(error)
                delay = min(max(2 * delay, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS)
                continue
            self._restorer = None
            log.warning("kvtier: the agent at %s answers again", self.address)
            return

    async def close(self) -> None:
        """Ends the connection, and calls that are under way."""
        self._closed = True
        restorer, self._restorer = self._restorer, None
        if restorer is not None:
            restorer.cancel()
            await asyncio.gather(restorer, return_exceptions=True)
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

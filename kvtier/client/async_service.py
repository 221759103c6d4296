"""Calls to one gRPC service on an event loop, with kvtier's exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from kvtier.client.endpoint import Endpoint
from kvtier.client.service import OPTIONS, Metadata, call_of, translated
from kvtier.client.streaming import Read
from kvtier.errors import AgentUnavailableError


class AsyncService:
    """As `Service`; made and used on one event loop. A cancelled call ends at the agent too."""

    def __init__(self, endpoint: Endpoint, descriptor: ServiceDescriptor) -> None:
        target, credentials = endpoint.target, endpoint.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        self._metadata = endpoint.metadata
        self._calls: dict[str, Any] = {
            method.name: call_of(self._channel, method, is_serialized=True)
            for method in descriptor.methods
        }

    async def call(
        self, method: str, request: Message, timeout_seconds: float, metadata: Metadata = ()
    ) -> Any:
        """One answer, within the deadline."""
        metadata += self._metadata
        try:
            return await self._calls[method](request, timeout=timeout_seconds, metadata=metadata)
        except grpc.aio.UsageError as error:  # the channel is closed
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    async def receive(
        self, method: str, read: Read, timeout_seconds: float, metadata: Metadata
    ) -> None:
        """Gives a stream's messages to `read`."""
        metadata += self._metadata
        try:
            answers = self._calls[method](read.request, timeout=timeout_seconds, metadata=metadata)
            try:
                async for message in answers:
                    read.take(message)
            finally:
                answers.cancel()
        except grpc.aio.UsageError as error:
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    async def send(
        self, method: str, messages: Iterator[bytes], timeout_seconds: float, metadata: Metadata
    ) -> Any:
        """One answer to messages that are serialized already; it may come before the last one."""
        metadata += self._metadata
        try:
            call = self._calls[method](timeout=timeout_seconds, metadata=metadata)
            try:
                # What ended the call while messages were sent, the answer itself says.
                with suppress(asyncio.InvalidStateError, grpc.RpcError):
                    for message in messages:
                        if call.done():
                            break
                        await call.write(message)
                    await call.done_writing()
                return await call
            finally:
                call.cancel()
        except grpc.aio.UsageError as error:
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    async def close(self, grace_seconds: float | None = None) -> None:
        """Takes no new calls, and ends those that are under way: at once, or after that time."""
        await self._channel.close(grace_seconds)

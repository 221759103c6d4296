"""A gRPC server on Unix sockets: admission, parsing and errors, the same for every method."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from kvtier.agent.admission import Admission, Work
from kvtier.core.retry_info import STATUS_METADATA, overloaded_status
from kvtier.core.status import CODES, Code
from kvtier.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    KvtierError,
    OverloadedError,
)

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_WORK = {
    "LoadBlocks": Work.LOAD,
    "ReadBlocks": Work.LOAD,
    # What it ends would be written in vain.
    "CommitBlocks": Work.LOAD,
    "ReserveBlocks": Work.STORE,
    "WriteBlocks": Work.STORE,
    "PrefetchPrefix": Work.PREFETCH,
}
_SESSION_METADATA = "kvtier-session-bin"
_READY = "ready"
_GONE_SECONDS = 1.0
_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.so_reuseport", 0),
    # Of one connection; what is beyond it waits at the client, and takes no memory here.
    ("grpc.max_concurrent_streams", 512),
]


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of its caller: the session it names, and the time until its deadline."""

    session_token: bytes | None = None
    remaining_seconds: float | None = None


def patience_seconds(call: Call) -> float | None:
    """How long a call may wait so that its answer still arrives before the caller's deadline."""
    remaining = call.remaining_seconds
    return None if remaining is None else max(0.0, remaining * 0.8 - 0.02)


def work_of(method: MethodDescriptor) -> Work:
    """What a method does to the bytes of blocks; most ask for metadata alone."""
    return _WORK.get(method.name, Work.ASK)


class Server:
    """Serves services on one Unix socket.

    A servicer has a coroutine `Method(request, call)` for each method of its service; an async
    generator where the answer is a stream, which may yield messages that are serialized already. A
    stream of requests is given as an async iterator of bytes. KvtierErrors become their status
    code; anything else is a bug, logged under an id that the caller is told.

    The health service says that "" is SERVING while it listens, and "ready" as `set_ready` says.
    Streams whose client does nothing for `stall_seconds` are ended; with None they count as calls
    and last as long as they like.
    """

    def __init__(self, admission: Admission, stall_seconds: float | None = None) -> None:
        self._admission = admission
        self._stall_seconds = stall_seconds
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, service: ServiceDescriptor, *servicers: object) -> None:
        """Each method of the service is that of the first servicer that has it."""
        handlers = {
            method.name: self._handler(method, getattr(servicer, method.name))
            for servicer in reversed(servicers)
            for method in service.methods
            if hasattr(servicer, method.name)
        }
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        self._server.add_generic_rpc_handlers((generic,))

    async def listen(self, path: Path, mode: int, group_id: int) -> None:
        """Binds the socket, with this mode from its first moment on, and serves; not yet ready."""
        await self.set_ready(False)
        path.unlink(missing_ok=True)
        old_mask = os.umask(0o777 & ~mode)
        try:
            self._server.add_insecure_port(f"unix:{path}")
            await self._server.start()
        finally:
            os.umask(old_mask)
        os.chown(path, -1, group_id)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def set_ready(self, is_ready: bool) -> None:
        """What probes of the health service are told about "ready"; without effect after `stop`."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(_READY, status.SERVING if is_ready else status.NOT_SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls; those in flight have this long to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    def _handler(
        self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._collecting(method, behaviour), response_serializer=_serialized
            )
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, behaviour), response_serializer=_serialized
            )
        return grpc.unary_unary_rpc_method_handler(
            self._answering(method, behaviour), response_serializer=_serialized
        )

    def _answering(self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any]) -> Any:
        """One request, one answer."""
        request_class: type[Message] = GetMessageClass(method.input_type)

        async def call(data: bytes, context: Context) -> Message:
            caller = _call_of(context)
            try:
                with self._admission.call(work_of(method), caller.session_token):
                    result: Message = await behaviour(parsed(request_class, data), caller)
                    return result
            except Exception as error:
                status = _status_of(method, error)
            return await context.abort(*status)

        return call

    def _streaming(self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any]) -> Any:
        """One request, a stream of answers."""
        request_class: type[Message] = GetMessageClass(method.input_type)

        async def stream(data: bytes, context: Context) -> None:
            caller = _call_of(context)
            try:
                with self._admitted(method, caller):
                    answers = behaviour(parsed(request_class, data), caller)
                    async with aclosing(answers):
                        async for message in answers:
                            await self._write(context, message)
                    return
            except grpc.aio.InternalError:
                # The client has gone, and the cancellation of this call is on its way. Who returns
                # before makes gRPC send a status, which fails, and fills the log.
                await asyncio.sleep(_GONE_SECONDS)
                return
            except Exception as error:
                status = _status_of(method, error)
            await context.abort(*status)

        return stream

    def _collecting(self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any]) -> Any:
        """A stream of requests, one answer."""

        async def collect(requests: AsyncIterator[bytes], context: Context) -> Message:
            caller = _call_of(context)
            try:
                with self._admitted(method, caller):
                    async with aclosing(self._timely(requests)) as timely:
                        result: Message = await behaviour(timely, caller)
                    return result
            except Exception as error:
                status = _status_of(method, error)
            return await context.abort(*status)

        return collect

    def _admitted(self, method: MethodDescriptor, caller: Call) -> AbstractContextManager[None]:
        """A stream, for its length."""
        if self._stall_seconds is None:
            return self._admission.call(work_of(method), caller.session_token)
        return self._admission.stream(work_of(method), caller.session_token)

    async def _write(self, context: Context, message: Message | bytes) -> None:
        """Returns when the transport has taken it: a slow reader is waited for, not buffered for.

        Raises DeadlineExceededError if it takes nothing for too long.
        """
        try:
            async with asyncio.timeout(self._stall_seconds):
                await context.write(message)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the client took nothing for {self._stall_seconds:g} s (streams.stall_seconds)"
            ) from error

    async def _timely(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Raises DeadlineExceededError if nothing comes for too long."""
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    data = await anext(requests)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"the client sent nothing for {self._stall_seconds:g} s (streams.stall_seconds)"
                ) from error
            yield data


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def parsed(request_class: type[Message], data: bytes) -> Message:
    """The request; raises InvalidRequestError if it is none."""
    try:
        request: Message = request_class.FromString(data)
        return request
    except DecodeError as error:
        raise InvalidRequestError(f"not a {request_class.DESCRIPTOR.name}: {error}") from error


def status_of(method: MethodDescriptor, error: Exception) -> tuple[Code, str]:
    """The code and message of an exception; logs those that are bugs."""
    if not isinstance(error, KvtierError):
        incident = secrets.token_hex(4)
        log.error("%s failed (incident %s)", method.full_name, incident, exc_info=error)
        error = InternalError(f"a bug in kvtier; the agent's log has it as incident {incident}")
    return CODES[type(error)], str(error)


def _status_of(
    method: MethodDescriptor, error: Exception
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """What a call is ended with; with the metadata that says when to try again, if it says so."""
    code, message = status_of(method, error)
    details: tuple[tuple[str, bytes], ...] = ()
    if isinstance(error, OverloadedError):
        details = ((STATUS_METADATA, overloaded_status(error)),)
    return grpc.StatusCode[code.name], message, details


def _call_of(context: Context) -> Call:
    for key, value in context.invocation_metadata() or ():
        if key == _SESSION_METADATA and isinstance(value, bytes):
            return Call(value, context.time_remaining())
    return Call(None, context.time_remaining())

"""A gRPC server on a Unix socket or TCP: admission, parsing, errors, the same for every method."""

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

from kvtier.access.credential import LOCAL, Caller
from kvtier.agent.serving.admission import Admission, Work
from kvtier.core.retry_info import STATUS_METADATA, overloaded_status
from kvtier.core.status import CODES, Code
from kvtier.errors import (
    ConfigError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    KvtierError,
    OverloadedError,
)
from kvtier.rpc.call_counts import CallCounts
from kvtier.rpc.guard import Guard
from kvtier.rpc.tls import ServerTls

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
#: Of one listener, unless told.
MAX_CONNECTIONS = 256
_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.so_reuseport", 0),
    # Of one connection; what is beyond it waits at the client, and takes no memory here.
    ("grpc.max_concurrent_streams", 512),
    # Until a connection speaks HTTP/2.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Then a client connects again when it has something to say: what was forgotten makes room, and
    # a certificate that has expired ends. Calls under way go on.
    ("grpc.max_connection_age_ms", 600_000),
]


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of its caller: the session it names, the time until its deadline, and
    who it is."""

    session_token: bytes | None = None
    remaining_seconds: float | None = None
    caller: Caller = LOCAL


def patience_seconds(call: Call) -> float | None:
    """How long a call may wait so that its answer still arrives before the caller's deadline."""
    remaining = call.remaining_seconds
    return None if remaining is None else max(0.0, remaining * 0.8 - 0.02)


def work_of(method: MethodDescriptor) -> Work:
    """What a method does to the bytes of blocks; most ask for metadata alone."""
    return _WORK.get(method.name, Work.ASK)


@dataclass(frozen=True, slots=True)
class Limits:
    """What calls of a service are let in, and how long a stream waits for its client."""

    admission: Admission
    stall_seconds: float | None = None

    def stream(self, method: MethodDescriptor, caller: Call) -> AbstractContextManager[None]:
        """For its length; without an end to waiting it counts as a call."""
        if self.stall_seconds is None:
            return self.admission.call(work_of(method), caller.session_token)
        return self.admission.stream(work_of(method), caller.session_token)


class Server:
    """Serves services on one Unix socket, or with a guard on one TCP address.

    A servicer has a coroutine `Method(request, call)` for each method of its service; an async
    generator where the answer is a stream, which may yield messages that are serialized already. A
    stream of requests is given as an async iterator of bytes. KvtierErrors become their status
    code; anything else is a bug, logged under an id that the caller is told.

    The health service says that "" is SERVING while it listens, and "ready" as `set_ready` says.
    Streams whose client does nothing for `stall_seconds` are ended; with None they count as calls
    and last as long as they like. Beyond `max_connections` new ones are closed at once.
    """

    def __init__(
        self,
        admission: Admission,
        stall_seconds: float | None = None,
        guard: Guard | None = None,
        calls: CallCounts | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._limits = Limits(admission, stall_seconds)
        self._calls = CallCounts() if calls is None else calls
        self._guard = guard
        options = [*_OPTIONS, ("grpc.max_allowed_incoming_connections", max_connections)]
        self._server = grpc.aio.server(options=options)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(
        self, service: ServiceDescriptor, *servicers: object, limits: Limits | None = None
    ) -> None:
        """Each method of the service is that of the first servicer that has it. `limits` are those
        of this service, instead of the server's own."""
        limits = limits or self._limits
        handlers = {
            method.name: self._handler(method, getattr(servicer, method.name), limits)
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

    async def listen_remotely(self, address: str, tls: ServerTls | None) -> int:
        """Serves on HOST:PORT, without `tls` in the clear; the port. Raises ConfigError."""
        assert self._guard is not None, "whoever can connect could call anything"
        await self.set_ready(False)
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: it is in use, or no address of this machine"
            ) from error
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return port

    async def set_ready(self, is_ready: bool) -> None:
        """What probes of the health service are told about "ready"; without effect after `stop`."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(_READY, status.SERVING if is_ready else status.NOT_SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls; those in flight have this long to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    def _handler(
        self,
        method: MethodDescriptor,
        behaviour: Callable[[Any, Call], Any],
        limits: Limits,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if self._guard is not None:
            behaviour = self._guard.guarded(method, behaviour)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._collecting(method, behaviour, limits), response_serializer=_serialized
            )
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, behaviour, limits), response_serializer=_serialized
            )
        return grpc.unary_unary_rpc_method_handler(
            self._answering(method, behaviour, limits), response_serializer=_serialized
        )

    def _answering(
        self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any], limits: Limits
    ) -> Any:
        """One request, one answer."""
        request_class: type[Message] = GetMessageClass(method.input_type)

        async def call(data: bytes, context: Context) -> Message:
            try:
                known = self._call_of(context)  # first: strangers get no further
                with limits.admission.call(work_of(method), known.session_token):
                    result: Message = await behaviour(parsed(request_class, data), known)
                    self._calls.succeeded(method)
                    return result
            except Exception as error:
                status = self._failed(method, error)
            return await context.abort(*status)

        return call

    def _streaming(
        self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any], limits: Limits
    ) -> Any:
        """One request, a stream of answers."""
        request_class: type[Message] = GetMessageClass(method.input_type)

        async def stream(data: bytes, context: Context) -> None:
            try:
                known = self._call_of(context)
                with limits.stream(method, known):
                    answers = behaviour(parsed(request_class, data), known)
                    async with aclosing(answers):
                        async for message in answers:
                            await _write(context, message, limits.stall_seconds)
                    self._calls.succeeded(method)
                    return
            except grpc.aio.InternalError:
                # The client has gone, and the cancellation of this call is on its way. Who returns
                # before makes gRPC send a status, which fails, and fills the log.
                await asyncio.sleep(_GONE_SECONDS)
                return
            except Exception as error:
                status = self._failed(method, error)
            await context.abort(*status)

        return stream

    def _collecting(
        self, method: MethodDescriptor, behaviour: Callable[[Any, Call], Any], limits: Limits
    ) -> Any:
        """A stream of requests, one answer."""

        async def collect(requests: AsyncIterator[bytes], context: Context) -> Message:
            try:
                known = self._call_of(context)
                with limits.stream(method, known):
                    async with aclosing(_timely(requests, limits.stall_seconds)) as timely:
                        result: Message = await behaviour(timely, known)
                    self._calls.succeeded(method)
                    return result
            except Exception as error:
                status = self._failed(method, error)
            return await context.abort(*status)

        return collect

    def _call_of(self, context: Context) -> Call:
        """Raises UnauthenticatedError."""
        caller = LOCAL if self._guard is None else self._guard.caller(context)
        for key, value in context.invocation_metadata() or ():
            if key == _SESSION_METADATA and isinstance(value, bytes):
                return Call(value, context.time_remaining(), caller)
        return Call(None, context.time_remaining(), caller)

    def _failed(
        self, method: MethodDescriptor, error: Exception
    ) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
        """What a call is ended with; with the metadata that says when to try again, if it does."""
        code, message = status_of(method, error)
        self._calls.failed(method, code)
        details: tuple[tuple[str, bytes], ...] = ()
        if isinstance(error, OverloadedError):
            details = ((STATUS_METADATA, overloaded_status(error)),)
        return grpc.StatusCode[code.name], message, details


async def _write(context: Context, message: Message | bytes, stall_seconds: float | None) -> None:
    """Returns when the transport has taken it: a slow reader is waited for, not buffered for.

    Raises DeadlineExceededError if it takes nothing for too long.
    """
    try:
        async with asyncio.timeout(stall_seconds):
            await context.write(message)
    except TimeoutError as error:
        raise DeadlineExceededError(
            f"the client took nothing for {stall_seconds:g} s (streams.stall_seconds)"
        ) from error


async def _timely(
    requests: AsyncIterator[bytes], stall_seconds: float | None
) -> AsyncGenerator[bytes]:
    """Raises DeadlineExceededError if nothing comes for too long."""
    while True:
        try:
            async with asyncio.timeout(stall_seconds):
                data = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the client sent nothing for {stall_seconds:g} s (streams.stall_seconds)"
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

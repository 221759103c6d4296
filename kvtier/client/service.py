"""Calls to one gRPC service, with kvtier's exceptions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.client.endpoint import Endpoint
from kvtier.core.retry_info import STATUS_METADATA, overloaded_error
from kvtier.core.status import ERRORS
from kvtier.errors import AgentUnavailableError, InvalidRequestError, KvtierError

Metadata = tuple[tuple[str, str | bytes], ...]

OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each Client has a connection of its own, so that closing one harms no other.
    ("grpc.use_local_subchannel_pool", 1),
]


class Service:
    """A channel to one service of an agent. Thread-safe.

    `address` is a Unix socket's, or an `Endpoint`. Methods raise the KvtierError of the status
    code; see `kvtier.core.status`.
    """

    def __init__(self, address: str | Endpoint, descriptor: ServiceDescriptor) -> None:
        endpoint = address if isinstance(address, Endpoint) else Endpoint(address)
        credentials = endpoint.credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(endpoint.target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(endpoint.target, credentials, options=OPTIONS)
        self._metadata = endpoint.metadata
        self._responses: dict[str, Any] = {
            method.name: GetMessageClass(method.output_type) for method in descriptor.methods
        }
        self._calls: dict[str, Any] = {
            method.name: call_of(self._channel, method) for method in descriptor.methods
        }
        self._serialized: dict[str, Any] = {
            method.name: call_of(self._channel, method, is_serialized=True)
            for method in descriptor.methods
            if method.server_streaming or method.client_streaming
        }

    def call(
        self, method: str, request: Message, timeout_seconds: float, metadata: Metadata = ()
    ) -> Any:
        """One answer, within the deadline."""
        metadata += self._metadata
        try:
            return self._calls[method](request, timeout=timeout_seconds, metadata=metadata)
        except ValueError as error:  # what gRPC raises for a channel that another thread closed
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    def response(self, method: str, data: bytes) -> Any:
        """The message of an answer that came another way."""
        return self._responses[method].FromString(data)

    def stream(
        self, method: str, request: Message, timeout_seconds: float | None = None
    ) -> Generator[Any]:
        """Answers until the caller closes the generator, or the time is over."""
        answers = self._calls[method](request, timeout=timeout_seconds, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise translated(error) from error
        finally:
            answers.cancel()

    def receive(
        self, method: str, request: Message, timeout_seconds: float, metadata: Metadata
    ) -> Generator[bytes]:
        """Answers as they are on the wire, all within the deadline; close the iterator."""
        metadata += self._metadata
        try:
            answers = self._serialized[method](request, timeout=timeout_seconds, metadata=metadata)
            try:
                yield from answers
            finally:
                answers.cancel()
        except ValueError as error:
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    def send(
        self, method: str, messages: Iterator[bytes], timeout_seconds: float, metadata: Metadata
    ) -> Any:
        """One answer to messages that are serialized already; gRPC's thread asks for them."""
        metadata += self._metadata
        try:
            call = self._serialized[method]
            return call(messages, timeout=timeout_seconds, metadata=metadata)
        except ValueError as error:
            raise AgentUnavailableError(f"{method}: {error}") from error
        except grpc.RpcError as error:
            raise translated(error) from error

    def close(self) -> None:
        self._channel.close()


def call_of(channel: Any, method: MethodDescriptor, *, is_serialized: bool = False) -> Any:
    """What makes calls of a method; the messages of its stream are bytes if they are serialized."""
    request: Any = GetMessageClass(method.input_type).SerializeToString
    response: Any = GetMessageClass(method.output_type).FromString
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return channel.stream_unary(path, None if is_serialized else request, response)
    if method.server_streaming:
        return channel.unary_stream(path, request, None if is_serialized else response)
    return channel.unary_unary(path, request, response)


def translated(error: grpc.RpcError) -> KvtierError:
    """The exception that the agent raised, or the one for what happened on the way."""
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == STATUS_METADATA:
            return overloaded_error(value)
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return InvalidRequestError(
            "nothing like this is served there: workers and operators have addresses of their own "
            "(worker.sock and admin.sock, listen.address and listen.admin_address), or the agent "
            "is of another version"
        )
    if code is grpc.StatusCode.CANCELLED:  # not by the caller, who does not ask what became of it
        return AgentUnavailableError("the agent has ended the call: it is stopping")
    return ERRORS.get(code.value[0], KvtierError)(details or f"the call failed with {code.name}")

"""Calls to one gRPC service, with kvtier's exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.core.status import ERRORS
from kvtier.errors import AgentUnavailableError, KvtierError

Metadata = tuple[tuple[str, str | bytes], ...]

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each Client has a connection of its own, so that closing one harms no other.
    ("grpc.use_local_subchannel_pool", 1),
]


class Service:
    """A channel to one service of an agent. Thread-safe.

    Methods raise the KvtierError of the status code; see `kvtier.core.status`.
    """

    def __init__(self, address: str, descriptor: ServiceDescriptor) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._responses: dict[str, Any] = {
            method.name: GetMessageClass(method.output_type) for method in descriptor.methods
        }
        self._calls: dict[str, Any] = {
            method.name: (
                self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
            )(
                f"/{descriptor.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=self._responses[method.name].FromString,
            )
            for method in descriptor.methods
        }

    def call(
        self, method: str, request: Message, timeout_seconds: float, metadata: Metadata = ()
    ) -> Any:
        """One answer, within the deadline."""
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
    ) -> Iterator[Any]:
        """Answers until the caller closes the iterator, or the time is over."""
        answers = self._calls[method](request, timeout=timeout_seconds)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise translated(error) from error
        finally:
            answers.cancel()

    def close(self) -> None:
        self._channel.close()


def translated(error: grpc.RpcError) -> KvtierError:
    """The exception that the agent raised, or the one for what happened on the way."""
    code, details = error.code(), error.details() or ""
    return ERRORS.get(code.value[0], KvtierError)(details or f"the call failed with {code.name}")

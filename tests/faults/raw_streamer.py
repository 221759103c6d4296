"""A worker without shared memory that speaks kvtier.v1 by hand, and so can misbehave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import xxhash
from google.protobuf.message_factory import GetMessageClass

from kvtier import NamespaceSpec
from kvtier.testing import payload_for
from kvtier.v1 import block_cache_pb2 as pb
from tests.faults.raw_worker import keys_message, spec_message

_SERVICE = pb.DESCRIPTOR.services_by_name["BlockCache"]
_SESSION_METADATA = "kvtier-session-bin"
_PIECE_BYTES = 900 << 10


class RawStreamer:
    """A context manager. Methods raise grpc.RpcError.

    What is not read waits at the agent: gRPC would take whole streams ahead once it has found the
    connection fast.
    """

    def __init__(self, directory: Path) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{directory / 'worker.sock'}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)],
        )

    def open(self, spec: NamespaceSpec) -> bytes:
        request = pb.OpenSessionRequest(namespace=spec_message(spec))
        token: bytes = self.call("OpenSession", request).session_token
        return token

    def call(self, method: str, request: Any, session: bytes = b"", timeout: float = 5) -> Any:
        return self._multi("unary_unary", method)(
            request, timeout=timeout, metadata=_metadata(session)
        )

    def read(self, session: bytes, timeout: float | None = 10, **fields: Any) -> Any:
        """A stream under way; `cancel` ends it."""
        call = self._multi("unary_stream", "ReadBlocks")
        return call(pb.ReadBlocksRequest(**fields), timeout=timeout, metadata=_metadata(session))

    def write(
        self, session: bytes, messages: Iterable[Any], timeout: float | None = 10
    ) -> list[int]:
        call = self._multi("stream_unary", "WriteBlocks")
        answer = call(iter(messages), timeout=timeout, metadata=_metadata(session))
        return list(answer.status)

    def start_write(self, session: bytes, messages: Iterable[Any]) -> Any:
        """A stream under way: a future."""
        call = self._multi("stream_unary", "WriteBlocks")
        return call.future(iter(messages), timeout=30, metadata=_metadata(session))

    def _multi(self, kind: str, method: str) -> Any:
        answer = GetMessageClass(_SERVICE.methods_by_name[method].output_type)
        return getattr(self.channel, kind)(
            f"/{_SERVICE.full_name}/{method}",
            request_serializer=lambda each: each if isinstance(each, bytes) else _bytes(each),
            response_deserializer=answer.FromString,
        )

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> RawStreamer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def written(spec: NamespaceSpec, hashes: Sequence[bytes]) -> Iterator[pb.WriteBlocksRequest]:
    """The messages that store the payloads of these keys."""
    yield pb.WriteBlocksRequest(keys=keys_message(hashes))
    size = spec.block_bytes[0]
    for index, each in enumerate(hashes):
        data = payload_for(each, size, namespace=spec.label)
        for start in range(0, size, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, size)
            yield pb.WriteBlocksRequest(
                index=index,
                offset=start,
                data=data[start:stop].tobytes(),
                digests=xxhash.xxh3_128_digest(data.data) if stop == size else b"",
            )


def _metadata(session: bytes) -> tuple[tuple[str, bytes], ...]:
    return ((_SESSION_METADATA, session),) if session else ()


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data

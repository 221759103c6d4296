"""A worker that speaks kvtier.v1 and the attach protocol by hand, and so can misbehave."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier import NamespaceSpec
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

_SERVICE = pb.DESCRIPTOR.services_by_name["BlockCache"]
_SESSION_METADATA = "kvtier-session-bin"
_PACKET_BYTES = 64 << 10


def spec_message(spec: NamespaceSpec) -> block_pb2.NamespaceSpec:
    fields: dict[str, Any] = spec.layout_fields()
    return block_pb2.NamespaceSpec(tenant=spec.tenant, name=spec.name, **fields)


def keys_message(hashes: Sequence[bytes], **fields: Any) -> block_pb2.BlockKeys:
    return block_pb2.BlockKeys(
        hash_bytes=len(hashes[0]) if hashes else 0, hashes=b"".join(hashes), **fields
    )


def attach_socket(directory: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(5)
    peer.connect(str(directory / "attach.sock"))
    return peer


class RawWorker:
    """A context manager. `call` sends a message, or any bytes at all, and returns the answer."""

    def __init__(self, directory: Path) -> None:
        self.client_id = secrets.token_hex(16)
        self.channel = grpc.insecure_channel(
            f"unix:{directory / 'worker.sock'}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.socket = attach_socket(directory)
        try:
            self.token = self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> bytes:
        hello = {"op": "attach", "version": 1, "client": self.client_id}
        pidfd = os.pidfd_open(os.getpid())
        try:
            socket.send_fds(self.socket, [json.dumps(hello).encode()], [pidfd])
        finally:
            os.close(pidfd)
        return bytes.fromhex(json.loads(self.socket.recv(_PACKET_BYTES))["token"])

    def open(self, spec: NamespaceSpec) -> bytes:
        """A session's token."""
        request = pb.OpenSessionRequest(namespace=spec_message(spec), attach_token=self.token)
        token: bytes = self.call("OpenSession", request).session_token
        return token

    def call(
        self,
        method: str,
        request: Message | bytes,
        session: bytes | None = None,
        timeout: float = 5,
    ) -> Any:
        """Raises grpc.RpcError."""
        return self.start(method, request, session, timeout).result()

    def start(
        self,
        method: str,
        request: Message | bytes,
        session: bytes | None = None,
        timeout: float = 5,
    ) -> Any:
        """A call under way: a future."""
        answer = GetMessageClass(_SERVICE.methods_by_name[method].output_type)
        call: Any = self.channel.unary_unary(
            f"/{_SERVICE.full_name}/{method}", response_deserializer=answer.FromString
        )
        data = request if isinstance(request, bytes) else request.SerializeToString()
        metadata = () if session is None else ((_SESSION_METADATA, session),)
        return call.future(data, timeout=timeout, metadata=metadata)

    def detach(self) -> None:
        """Ends the attach connection, and nothing else."""
        self.socket.close()

    def close(self) -> None:
        self.detach()
        self.channel.close()

    def __enter__(self) -> RawWorker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

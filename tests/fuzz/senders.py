"""Ways of sending bytes to a live agent: each answers with a status code."""

from __future__ import annotations

import os
import socket
from collections import deque
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from kvtier.core import attach as protocol
from tests.faults.raw_worker import attach_socket

_SESSION_METADATA: Final = "kvtier-session-bin"
#: Calls under way at one time over one channel.
_WINDOW: Final = 16
_CALL_SECONDS: Final = 0.3
_STREAM_SECONDS: Final = 0.05
#: Far beyond the deadline of any call, on a busy machine.
_ANSWER_SECONDS: Final = 20.0
OK: Final = 0
_CAPABILITIES: Final = protocol.encode_call(
    protocol.DirectCall("GetCapabilities", bytes(protocol.TOKEN_BYTES), 1000, b"")
)


class GrpcSender:
    """Calls of any method, some at a time. A context manager."""

    def __init__(self, path: Path) -> None:
        self.answers: list[tuple[str, int, str]] = []
        self._channel = grpc.insecure_channel(
            f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._calls: dict[str, Any] = {}
        self._waiting: deque[tuple[MethodDescriptor, Any]] = deque()

    def send(self, method: MethodDescriptor, session: bytes, data: bytes) -> None:
        """Begins a call; its outcome is in `answers` some calls later."""
        call = self._call(method)
        metadata = ((_SESSION_METADATA, session),)
        if method.client_streaming:
            # As one message or as two, neither of which is one then.
            messages = (data,) if data[-1:] < b"\x80" else (data[::2], data[1::2])
            future = call.future(iter(messages), timeout=_CALL_SECONDS, metadata=metadata)
        elif method.server_streaming:
            future = call(data, timeout=_STREAM_SECONDS, metadata=metadata)
        else:
            future = call.future(data, timeout=_CALL_SECONDS, metadata=metadata)
        self._waiting.append((method, future))
        while len(self._waiting) >= _WINDOW:
            self._settle()

    def ask(self, method: MethodDescriptor, session: bytes, request: Any) -> Any:
        """One call that is right, and its answer."""
        metadata = ((_SESSION_METADATA, session),)
        return self._call(method)(request.SerializeToString(), timeout=5, metadata=metadata)

    def _call(self, method: MethodDescriptor) -> Any:
        path = f"/{method.containing_service.full_name}/{method.name}"
        if path not in self._calls:
            kind = "stream" if method.client_streaming else "unary"
            make = getattr(
                self._channel, f"{kind}_{'stream' if method.server_streaming else 'unary'}"
            )
            answer = GetMessageClass(method.output_type)
            self._calls[path] = make(path, response_deserializer=answer.FromString)
        return self._calls[path]

    def _settle(self) -> None:
        method, call = self._waiting.popleft()
        try:
            if method.server_streaming:
                deque(call, maxlen=0)
            else:
                call.result()
        except grpc.RpcError as error:
            code: Any = error.code()
            self.answers.append((method.name, code.value[0], error.details() or ""))
        else:
            self.answers.append((method.name, OK, ""))

    def settle(self) -> None:
        """Waits for the outcomes of all."""
        while self._waiting:
            self._settle()

    def __enter__(self) -> GrpcSender:
        return self

    def __exit__(self, *exc: object) -> None:
        self.settle()
        self._channel.close()


class AttachSender:
    """Packets on the attach socket; attaches again when it was cut off. A context manager."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.cut_off_count = 0
        self.token = b""
        self._directory = directory
        self._client = random.randbytes(protocol.TOKEN_BYTES)
        self._socket: socket.socket | None = None

    def attached(self) -> socket.socket:
        """The connection, which is a new one after it was cut off."""
        if self._socket is None:
            peer = attach_socket(self._directory)
            peer.settimeout(_ANSWER_SECONDS)
            hello = {"op": "attach", "version": protocol.VERSION, "client": self._client.hex()}
            send_with(peer, protocol.encode(hello), [os.pidfd_open(os.getpid())])
            self.token = protocol.token(protocol.decode(peer.recv(1 << 16)), "token")
            self._socket = peer
        return self._socket

    def send(self, packet: bytes) -> int | None:
        """The status code of the answer to it, or to a direct call after it that is right; None if
        the connection was cut off."""
        peer = self.attached()
        try:
            peer.send(packet)
            if not packet or not protocol.is_call(packet):
                peer.send(_CAPABILITIES)
            while answer := peer.recv(1 << 16):
                if protocol.is_answer(answer):
                    return protocol.decode_answer(answer)[0]
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.cut_off_count += 1
        self.close()
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> AttachSender:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def send_with(peer: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Sends a packet with descriptors, and closes them here."""
    try:
        socket.send_fds(peer, [data], descriptors)
    finally:
        for each in descriptors:
            os.close(each)

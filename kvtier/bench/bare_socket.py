"""What a plain socket does: the limit of `kvtier bench stream`."""

from __future__ import annotations

import multiprocessing
import socket
import struct
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.memory import ByteArray

_HEAD: Final = struct.Struct("<?Q")
_DONE: Final = b"!"
_MESSAGE_BYTES: Final = 1 << 20


class BareServer:
    """A process that sends and receives on a Unix socket, one peer at a time. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "bare.sock")
        context = multiprocessing.get_context("spawn")
        ready, is_ready = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(self.path, is_ready), daemon=True)
        self._process.start()
        is_ready.close()
        try:
            ready.recv()
        except EOFError as error:
            raise RuntimeError("the bare socket's process ended at its start") from error
        finally:
            ready.close()

    def __enter__(self) -> BareServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join()


class BareSocket:
    """The other end of a `BareServer`. A context manager.

    Bytes go in messages of 1 MiB, and nothing is done to them.
    """

    def __init__(self, path: str) -> None:
        self._peer = socket.socket(socket.AF_UNIX)
        self._peer.connect(path)

    def receive(self, out: ByteArray) -> None:
        """Fills an array from the other process."""
        self._peer.sendall(_HEAD.pack(True, out.nbytes))
        _receive(self._peer, out)

    def send(self, data: ByteArray) -> None:
        """Returns when the other process has it all."""
        self._peer.sendall(_HEAD.pack(False, data.nbytes))
        _send(self._peer, data)
        assert self._peer.recv(1) == _DONE

    def __enter__(self) -> BareSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self._peer.close()


def _serve(path: str, ready: Connection) -> None:
    """What the other process does until it is ended."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        ready.send(None)
        while True:
            with listener.accept()[0] as peer:
                _answer(peer)


def _answer(peer: socket.socket) -> None:
    """Until the peer hangs up."""
    buffer = np.zeros(0, np.uint8)
    while head := peer.recv(_HEAD.size, socket.MSG_WAITALL):
        is_reader, size_bytes = _HEAD.unpack(head)
        if len(buffer) < size_bytes:
            buffer = np.ones(size_bytes, np.uint8)
        if is_reader:
            _send(peer, buffer[:size_bytes])
        else:
            _receive(peer, buffer[:size_bytes])
            peer.sendall(_DONE)


def _send(peer: socket.socket, data: ByteArray) -> None:
    view = data.reshape(-1).data
    for start in range(0, len(view), _MESSAGE_BYTES):
        peer.sendall(view[start : start + _MESSAGE_BYTES])


def _receive(peer: socket.socket, out: ByteArray) -> None:
    view = out.reshape(-1).data
    received = 0
    while received < len(view):
        count = peer.recv_into(view[received : received + _MESSAGE_BYTES])
        if not count:
            raise ConnectionResetError("the other end of the bare socket is gone")
        received += count

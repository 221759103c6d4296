"""A bad connection between a client and an agent: it breaks, and it flips bits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 256 << 10


class UnixProxy:
    """Passes bytes between a socket of its own and an agent's; a context manager.

    `cut_after` and `flip` act once, on what comes next.
    """

    def __init__(self, directory: Path, target: Path) -> None:
        self.address = f"unix:{directory / 'worker.sock'}"
        self.connections = 0
        self._target = str(target)
        self._lock = threading.Lock()
        self._left: int | None = None
        self._marker = b""
        self._peers: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "worker.sock"))
        self._listener.listen(8)
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut_after(self, count: int) -> None:
        """Ends the connection when so many bytes have passed, in both directions together."""
        with self._lock:
            self._left = count

    def flip(self, marker: bytes) -> None:
        """Flips a bit of the first occurrence of these bytes within one piece that passes."""
        with self._lock:
            self._marker = marker

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="unix-proxy")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                agent = socket.socket(socket.AF_UNIX)
                self._peers |= {client, agent}
                self.connections += 1
                try:
                    agent.connect(self._target)
                except OSError:
                    client.close()
                    continue
                self._start(self._carry, client, agent)
                self._start(self._carry, agent, client)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                passed = self._conduct(bytearray(data))
                target.sendall(passed)
                if len(passed) < len(data):
                    break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _conduct(self, data: bytearray) -> bytearray:
        with self._lock:
            if self._marker and (place := data.find(self._marker)) >= 0:
                data[place] ^= 1
                self._marker = b""
            if self._left is not None:
                self._left -= len(data)
                if self._left <= 0:
                    del data[self._left - 1 :]
                    self._left = None
        return data

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in list(self._peers):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for peer in self._peers:
            peer.close()

    def __enter__(self) -> UnixProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

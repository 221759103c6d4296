"""Stands between workers and an agent, to see what workers send."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

_PACKET_BYTES = 1 << 20
_KINDS = {"worker.sock": socket.SOCK_STREAM, "attach.sock": socket.SOCK_SEQPACKET}


class Relay:
    """A context manager. Workers reach the agent at `address`; `sent` has every byte that they sent
    over its sockets, of all connections, packet after packet."""

    def __init__(self, agent: Path, directory: Path) -> None:
        self.address = f"unix:{directory / 'worker.sock'}"
        self.sent = bytearray()
        self._agent = agent
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for name, kind in _KINDS.items():
            listener = socket.socket(socket.AF_UNIX, kind)
            listener.bind(str(directory / name))
            listener.listen()
            self._open.append(listener)
            self._start(self._accept, listener, agent / name, kind)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, path: Path, kind: int) -> None:
        while True:
            try:
                worker, _ = listener.accept()
            except OSError:  # closed
                return
            agent = socket.socket(socket.AF_UNIX, kind)
            agent.connect(str(path))
            with self._lock:
                self._open += [worker, agent]
                self._start(self._pump, worker, agent, True)
                self._start(self._pump, agent, worker, False)

    def _pump(self, source: socket.socket, target: socket.socket, is_worker: bool) -> None:
        try:
            while True:
                data, descriptors, _, _ = socket.recv_fds(source, _PACKET_BYTES, 64)
                if not data:
                    break
                if is_worker:
                    with self._lock:
                        self.sent += data
                self._pass_on(target, data, descriptors, is_worker)
        except OSError:
            pass
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _pass_on(
        self, target: socket.socket, data: bytes, descriptors: list[int], is_worker: bool
    ) -> None:
        """A worker shows who it is with a pidfd; to the agent, the worker is this process."""
        if descriptors and is_worker:
            for descriptor in descriptors:
                os.close(descriptor)
            descriptors = [os.pidfd_open(os.getpid())]
        try:
            if descriptors:
                socket.send_fds(target, [data], descriptors)
            else:
                target.sendall(data)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            for each in self._open:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        for thread in self._threads:
            thread.join(5.0)
        for each in self._open:
            each.close()

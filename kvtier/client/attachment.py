"""The attach connection: direct calls, and the agent's memory as this process maps it."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from kvtier import devices, errors, memory
from kvtier.client.device import UnreadableDeviceError, WorkerDevice
from kvtier.core import attach as protocol
from kvtier.core import slots as layout
from kvtier.core.retry_info import overloaded_error
from kvtier.core.status import ERRORS, Code

_UNMAPPED_PER_MESSAGE = 1024


@dataclass(frozen=True)
class MappedExtent:
    """An extent: `cells` is [slots, slot_bytes], an array, or a tensor on a device; `generations`
    has one u64 per slot. `settle` waits for what a device still copies from it for this thread.
    """

    extent_id: int
    cells: Any
    generations: npt.NDArray[np.uint64]
    settle: Callable[[], None] = lambda: None


class Attachment:
    """Attaches to an agent, makes direct calls, maps extents on demand. Thread-safe.

    Raises AgentUnavailableError when the agent does not answer in time or has gone, and what the
    agent says otherwise. Memory stays mapped for as long as an array of it lives; an extent that
    the agent has retired is dropped from here at the next `poll`.
    """

    def __init__(self, path: str, client_id: bytes, timeout_seconds: float) -> None:
        self._lock = threading.Lock()
        self._broken = False
        self._pid = os.getpid()
        self._extents: dict[int, MappedExtent] = {}
        self._unmapped: deque[int] = deque()
        self._device: WorkerDevice | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise errors.AgentUnavailableError(f"no socket to attach with: {error}") from error
        try:
            with self._waiting(timeout_seconds):
                self._socket.connect(path)
                answer = self._attach(client_id)
        except BaseException:
            self._socket.close()
            raise
        self.epoch = int(answer["epoch"])
        self.token = bytes.fromhex(answer["token"])

    def _attach(self, client_id: bytes) -> protocol.Message:
        hello = {"op": "attach", "version": protocol.VERSION, "client": client_id.hex()}
        pidfd = os.pidfd_open(os.getpid())
        try:
            socket.send_fds(self._socket, [protocol.encode(hello)], [pidfd])
        finally:
            os.close(pidfd)
        return self._receive("attached")[0]

    def pin_for(self, device: WorkerDevice) -> None:
        """Memory that is mapped from now on is registered for copies to this device."""
        self._device = device

    def place(self, device: WorkerDevice, timeout_seconds: float) -> bool:
        """Says on which device this worker is; whether the agent has slots there."""
        with self._exchange(timeout_seconds):
            self._socket.send(protocol.encode({"op": "device", "device": device.identity}))
            return bool(self._receive("device")[0]["device"])

    def poll(self) -> None:
        """Handles what the agent has said meanwhile, without waiting.

        Raises AgentUnavailableError if it has closed the connection.
        """
        if self._lock.acquire(blocking=False):  # whoever holds it reads for all
            try:
                with self._waiting(0):
                    self._receive("")
            finally:
                self._lock.release()

    def call(
        self, method: str, session_token: bytes, request: Message, timeout_seconds: float
    ) -> bytes | None:
        """The serialized response of a small call; None if gRPC is to be used.

        That is so for a large request, and while another thread uses the connection. Otherwise it
        does what `poll` does on the way.
        """
        body = request.SerializeToString()
        if len(body) > protocol.MAX_DIRECT_BYTES or not self._lock.acquire(blocking=False):
            return None
        timeout_ms = min(int(timeout_seconds * 1000), protocol.MAX_TIMEOUT_MS)
        direct = protocol.DirectCall(method, session_token, timeout_ms, body)
        try:
            with self._waiting(timeout_seconds):
                self._tell_unmapped()
                self._socket.send(protocol.encode_call(direct))
                code, body = self._receive_answer()
        finally:
            self._lock.release()
        if code == protocol.TOO_LARGE:
            return None
        if code:
            if code == Code.RESOURCE_EXHAUSTED:
                raise overloaded_error(body)
            raise ERRORS.get(code, errors.KvtierError)(body.decode())
        return body

    @contextmanager
    def _waiting(self, timeout_seconds: float) -> Iterator[None]:
        """For an exchange with the agent, under the lock.

        After one that failed the connection is not used again: the answer may still come, and would
        be taken for that to the next request.
        """
        if self._broken:
            raise errors.AgentUnavailableError("the attach connection is broken")
        try:
            self._socket.settimeout(timeout_seconds)
            yield
        except TimeoutError as error:
            self._broken = True
            raise errors.DeadlineExceededError(
                f"no answer on the attach connection within {timeout_seconds:g} s"
            ) from error
        except BlockingIOError:  # of a poll: nothing was said
            self._tell_unmapped()
        except OSError as error:
            self._broken = True
            raise errors.AgentUnavailableError(f"the attach connection failed: {error}") from error
        except BaseException:  # an interrupt between question and answer, too
            self._broken = True
            raise

    def get(
        self, session_token: bytes, extent_ids: Collection[int], timeout_seconds: float
    ) -> dict[int, MappedExtent]:
        """These extents, mapped; without those that the agent has retired.

        Raises UnreadableDeviceError if one on a device cannot be opened.
        """
        if any(each not in self._extents for each in extent_ids):
            failures: list[UnreadableDeviceError] = []
            with self._exchange(timeout_seconds):
                missing = [each for each in extent_ids if each not in self._extents]
                on_device = [each for each in missing if devices.place_of(each)]
                self._request(session_token, [e for e in missing if e not in on_device])
                self._request_on_device(session_token, on_device, failures)
            if failures:
                raise failures[0]
        known = self._extents
        return {each: known[each] for each in extent_ids if each in known}

    @contextmanager
    def _exchange(self, timeout_seconds: float) -> Iterator[None]:
        """Under the lock."""
        if not self._lock.acquire(timeout=timeout_seconds):
            raise errors.DeadlineExceededError("the attach connection is in use")
        try:
            with self._waiting(timeout_seconds):
                yield
        finally:
            self._lock.release()

    def _request(self, session_token: bytes, extent_ids: list[int]) -> None:
        step = protocol.MAX_EXTENTS_PER_REQUEST
        for start in range(0, len(extent_ids), step):
            wanted = extent_ids[start : start + step]
            request = {"op": "extents", "session": session_token.hex(), "extents": wanted}
            self._socket.send(protocol.encode(request))
            answer, descriptors = self._receive("extents")
            try:
                for described, fd in zip(answer["extents"], descriptors[1:], strict=True):
                    self._map(described, descriptors[0], fd)
            finally:
                _close_all(descriptors)

    def _map(self, described: dict[str, int], table_fd: int, fd: int) -> None:
        extent_id, slots, unmapped = described["extent"], described["slots"], self._unmapped
        pinned: list[Callable[[], None]] = []
        cells = memory.map_shared(
            fd,
            slots * described["slot_bytes"],
            writable=True,
            on_unmap=lambda: unmapped.append(extent_id),
            before_unmap=lambda: _call_all(pinned),
        )
        if self._device is not None:
            pinned += self._device.pin(cells)
        self._install(described, table_fd, cells.reshape(slots, -1))

    def _install(self, described: protocol.Message, table_fd: int, cells: Any) -> None:
        slots = described["slots"]
        table = memory.map_shared(
            table_fd,
            layout.table_pages(slots) * memory.PAGE_BYTES,
            writable=False,
            offset=described["base"] * layout.GENERATION_BYTES,
        )
        settle = self._device.settle if self._device is not None else lambda: None
        self._extents[described["extent"]] = MappedExtent(
            described["extent"], cells, table.view("<u8")[:slots], settle
        )

    def _request_on_device(
        self, session_token: bytes, extent_ids: list[int], failures: list[UnreadableDeviceError]
    ) -> None:
        step = protocol.MAX_DEVICE_EXTENTS_PER_REQUEST
        for start in range(0, len(extent_ids), step):
            wanted = extent_ids[start : start + step]
            request = {"op": "device_extents", "session": session_token.hex(), "extents": wanted}
            self._socket.send(protocol.encode(request))
            answer, descriptors = self._receive("device_extents")
            try:
                following = iter(descriptors[1:])
                for described in answer["extents"]:
                    by_handle = described["handle"] or "failure" in described
                    fd = None if by_handle else next(following)
                    try:
                        self._open(described, descriptors[0], fd)
                    except UnreadableDeviceError as error:  # the connection is as good as before
                        failures.append(error)
            finally:
                _close_all(descriptors)

    def _open(self, described: protocol.Message, table_fd: int, fd: int | None) -> None:
        """An extent on the device; one that cannot be opened is not held either."""
        assert self._device is not None
        extent_id, unmapped = described["extent"], self._unmapped
        shape = (described["slots"], described["slot_bytes"])
        try:
            if failure := described.get("failure"):
                raise UnreadableDeviceError(f"the agent cannot share it: {failure}")
            cells = self._device.open(
                fd, described["handle"], shape, lambda: unmapped.append(extent_id)
            )
        except UnreadableDeviceError:
            unmapped.append(extent_id)
            raise
        if fd is None:  # no mapping of ours, whose end would say so
            weakref.finalize(cells, unmapped.append, extent_id).atexit = False
        self._install(described, table_fd, cells)

    def _receive(self, wanted: str) -> tuple[protocol.Message, list[int]]:
        """The next message of this kind; handles others on the way."""
        while True:
            data, descriptors = self._receive_packet()
            message = protocol.decode(data)
            if message["op"] == wanted:
                return message, descriptors
            _close_all(descriptors)
            self._handle(message)

    def _receive_answer(self) -> tuple[int, bytes]:
        """The answer to a direct call; handles messages on the way. Neither carries descriptors."""
        while True:
            data = self._socket.recv(protocol.MAX_MESSAGE_BYTES)
            if not data:
                raise errors.AgentUnavailableError("the agent closed the attach connection")
            if protocol.is_answer(data):
                return protocol.decode_answer(data)
            self._handle(protocol.decode(data))

    def _receive_packet(self) -> tuple[bytes, list[int]]:
        data, descriptors, flags, _ = socket.recv_fds(
            self._socket,
            protocol.MAX_MESSAGE_BYTES,
            memory.MAX_DESCRIPTORS_PER_MESSAGE,
            socket.MSG_CMSG_CLOEXEC,
        )
        if not data:
            raise errors.AgentUnavailableError("the agent closed the attach connection")
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            _close_all(descriptors)
            raise errors.AgentUnavailableError("an attach message was cut off")
        return data, descriptors

    def _handle(self, message: protocol.Message) -> None:
        if message["op"] == "error":
            kind = getattr(errors, str(message["error"]), errors.KvtierError)
            raise kind(str(message["message"]))
        if message["op"] == "retired":
            for extent_id in message["extents"]:
                if self._extents.pop(extent_id, None) is None:
                    self._unmapped.append(extent_id)

    def _tell_unmapped(self) -> None:
        """Lets the agent close what this process maps no more; not worth waiting for."""
        gone: list[int] = []
        while self._unmapped and len(gone) < _UNMAPPED_PER_MESSAGE:
            gone.append(self._unmapped.popleft())
        if gone:
            try:
                self._socket.send(protocol.encode({"op": "unmapped", "extents": gone}))
            except OSError:
                self._unmapped.extend(gone)

    def close(self) -> None:
        """Ends the connection; what callers still look at stays mapped.

        A forked child has the same connection: it only forgets it.
        """
        self._extents = {}
        if os.getpid() == self._pid:
            with suppress(OSError):
                self._socket.settimeout(0)
                self._tell_unmapped()
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()

"""The attach socket: who a worker is, and the descriptors it may have."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvtier.agent.sessions.sessions import AccessRule, Attachment, Sessions, access_of
from kvtier.agent.turns import data_line
from kvtier.core import attach as protocol
from kvtier.core.block import Tier
from kvtier.errors import AccessDeniedError, InvalidRequestError, KvtierError
from kvtier.tiers.arena import Arena, HostExtent, SharedExtent, SharedSlotTable
from kvtier.tiers.slot_table import Extent

log = logging.getLogger(__name__)

_PEER_CREDENTIALS = struct.Struct("3i")
_MAX_QUEUED = 64
_IDS_PER_MESSAGE = 1024
_MAX_SILENT = 64
_ATTACH_SECONDS = 5.0
_PAUSE_SECONDS = 1.0

#: Answers an operation, at once or later; the descriptors are the caller's still.
Reply = Callable[[protocol.Message, Sequence[int]], None]
#: A further operation, which ends with its reply.
Operation = Callable[[protocol.Message, Attachment, Reply], None]
#: Answers a direct call: a gRPC status code (0: OK) and the response or a message.
Answer = Callable[[protocol.DirectCall], Awaitable[tuple[int, bytes]]]


class AttachServer:
    """Accepts workers on a SOCK_SEQPACKET socket, on the event loop.

    A connection's end, or its process's, is seen as it happens. Whoever does not read its messages
    or sends something malformed is cut off.
    """

    def __init__(
        self,
        sessions: Sessions,
        arena: Arena,
        rules: Sequence[AccessRule],
        epoch: int,
        answer: Answer,
        devices: Sequence[Arena] = (),
        operations: Mapping[str, Operation] | None = None,
    ) -> None:
        self.sessions = sessions
        #: HOST's, and those of devices.
        self.arenas = (arena, *devices)
        self.operations = operations or {}
        self.rules = rules
        self.epoch = epoch
        self.answer = answer
        #: The oldest first.
        self.connections: dict[_Connection, None] = {}
        self._listener: socket.socket | None = None

    def listen(self, path: Path, mode: int, group_id: int) -> None:
        """Binds the socket; `group_id` -1 keeps the process's own."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        old_mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        os.chown(path, -1, group_id)
        listener.listen(1024)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def announce_retired(self, extent: Extent) -> None:
        """Asks the workers that hold an extent to unmap it."""
        assert isinstance(extent, SharedExtent)
        for connection in self.connections:
            if connection.attachment in extent.holders:
                connection.announce_retired(extent.extent_id)

    def forget(self, attachment: Attachment) -> None:
        """An attachment that can map nothing any more: its process need not be watched."""
        for arena in self.arenas:
            arena.forget_holder(attachment)
        for connection in list(self.connections):
            if connection.attachment is attachment:
                connection.forget_process()

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        for connection in list(self.connections):
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except OSError as error:
            log.error("attach: cannot accept: %s; trying again in %g s", error, _PAUSE_SECONDS)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_PAUSE_SECONDS, self._resume, listener)
            return
        silent = [each for each in self.connections if each.attachment is None]
        if len(silent) >= _MAX_SILENT:
            # Not the new one: workers speak at once.
            log.warning("attach: %d connections have not attached: ending the oldest", _MAX_SILENT)
            silent[0].close()
        peer.setblocking(False)
        self.connections[_Connection(self, peer)] = None

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)


class _Connection:
    """One worker's connection, from its first message to the end of its process."""

    def __init__(self, server: AttachServer, peer: socket.socket) -> None:
        self.attachment: Attachment | None = None
        self._server = server
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._call: asyncio.Task[None] | None = None
        self._is_operating = False
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._retired: list[int] = []
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        self._pid, self._uid, self._gid = _PEER_CREDENTIALS.unpack(credentials)
        self._loop.add_reader(peer, self._readable)
        self._loop.call_later(_ATTACH_SECONDS, self._attach_or_leave)

    def _attach_or_leave(self) -> None:
        if self.attachment is None:
            self._hang_up()

    def send(self, message: protocol.Message, descriptors: Sequence[int] = ()) -> None:
        """Queues a message; a peer that lets them pile up is cut off."""
        self._send(protocol.encode(message), descriptors)

    def _send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._peer.fileno() < 0:
            return
        if not self._outgoing and self._try_to_send(data, descriptors):
            return
        if len(self._outgoing) >= _MAX_QUEUED:
            self._cut_off("it does not read its messages")
            return
        # Copies: an extent may be retired, and its number used again, before a slow peer reads.
        self._outgoing.append((data, [os.dup(each) for each in descriptors]))
        self._loop.add_writer(self._peer, self._flush)

    def _try_to_send(self, data: bytes, descriptors: Sequence[int]) -> bool:
        """False if the peer has to read first."""
        try:
            if descriptors:
                socket.send_fds(self._peer, [data], descriptors)
            else:
                self._peer.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self._hang_up()
        return True

    def announce_retired(self, extent_id: int) -> None:
        """Tells the worker; one that does not read gets them together when it does."""
        if self._peer.fileno() >= 0:
            self._retired.append(extent_id)
            self._announce()

    def forget_process(self) -> None:
        """Stops watching the process of a connection that has ended."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._server.connections.pop(self, None)

    def close(self) -> None:
        """The agent stops: the process itself is not waited for."""
        self._hang_up()
        self.forget_process()

    def _readable(self) -> None:
        try:
            data, descriptors, flags = self._receive()
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, flags = b"", [], 0
        try:
            if not data:
                self._hang_up()
            elif flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise InvalidRequestError("the attach message is too long")
            elif protocol.is_call(data):
                self._start_call(protocol.decode_call(data))
            else:
                self._answer(protocol.decode(data), descriptors)
        except KvtierError as error:
            self.send({"op": "error", "error": type(error).__name__, "message": str(error)})
            self._cut_off(str(error))
        finally:
            _close_all(descriptors)

    def _answer(self, message: protocol.Message, descriptors: list[int]) -> None:
        operation = protocol.text(message, "op")
        if operation == "attach":
            self._attach(message, descriptors)
        elif self.attachment is None:
            raise InvalidRequestError("attach message: the first op must be attach")
        elif operation == "extents":
            self._give_extents(message, self.attachment)
        elif operation == "unmapped":
            self._note_unmapped(message, self.attachment)
        elif operation in self._server.operations:
            self._start(self._server.operations[operation], message, self.attachment)
        else:
            raise InvalidRequestError(f"attach message: unknown op {operation[:40]!r}")

    def _start(
        self, operation: Operation, message: protocol.Message, attachment: Attachment
    ) -> None:
        if self._is_operating:
            raise InvalidRequestError("an attach message was sent before the last one was answered")
        self._is_operating = True

        def reply(answer: protocol.Message, descriptors: Sequence[int]) -> None:
            self._is_operating = False
            self.send(answer, descriptors)

        operation(message, attachment, reply)

    def _receive(self) -> tuple[bytes, list[int], int]:
        """A packet. Only the first one may carry a descriptor; the kernel drops those of others."""
        if self.attachment is not None:
            data = self._peer.recv(protocol.MAX_MESSAGE_BYTES)
            return data, [], socket.MSG_TRUNC if len(data) == protocol.MAX_MESSAGE_BYTES else 0
        data, descriptors, flags, _ = socket.recv_fds(self._peer, protocol.MAX_MESSAGE_BYTES, 1)
        return data, descriptors, flags

    def _start_call(self, call: protocol.DirectCall) -> None:
        if self.attachment is None:
            raise InvalidRequestError("attach message: the first op must be attach")
        if self._call is not None:
            raise InvalidRequestError("a direct call was sent before the last one was answered")
        data_line().give_way()
        self._call = self._loop.create_task(self._run_call(call))

    async def _run_call(self, call: protocol.DirectCall) -> None:
        code, body = await self._server.answer(call)
        if len(body) > protocol.MAX_ANSWER_BYTES:
            code, body = protocol.TOO_LARGE, b""
        self._call = None
        self._send(protocol.encode_answer(code, body))

    def _attach(self, message: protocol.Message, descriptors: list[int]) -> None:
        if self.attachment is not None:
            raise InvalidRequestError("attach message: attached already")
        if message.get("version") != protocol.VERSION:
            raise InvalidRequestError(f"attach message: version must be {protocol.VERSION}")
        client_id = protocol.token(message, "client")
        access = access_of(self._server.rules, self._uid, self._gid)
        if access is None:
            raise AccessDeniedError(
                f"uid {self._uid} (gid {self._gid}) may not attach: see `workers` in the agent's "
                "configuration"
            )
        if len(descriptors) != 1 or not _is_pidfd_of(descriptors[0], self._pid):
            raise InvalidRequestError("attach message: it must carry a pidfd of the sender")
        self.attachment = self._server.sessions.attach(
            client_id, self._uid, self._gid, self._pid, access
        )
        self._pidfd = descriptors.pop()
        self._loop.add_reader(self._pidfd, self._process_ended)
        log.info("worker attached: pid %d, uid %d", self._pid, self._uid)
        self.send(
            {
                "op": "attached",
                "epoch": self._server.epoch,
                "token": self.attachment.token.hex(),
            }
        )

    def _give_extents(self, message: protocol.Message, attachment: Attachment) -> None:
        session = self._server.sessions.find(protocol.token(message, "session"))
        if session.attachment is not attachment:
            raise AccessDeniedError("attach message: the session belongs to another connection")
        wanted = set(protocol.numbers(message, "extents", protocol.MAX_EXTENTS_PER_REQUEST))
        extents = [
            extent
            for size_class in session.namespace.classes_of(Tier.HOST)
            for extent in size_class.extents
            if extent.extent_id in wanted and isinstance(extent, HostExtent)
        ]
        for extent in extents:
            extent.holders.add(attachment)
        table = session.namespace.groups[0].table
        assert isinstance(table, SharedSlotTable)
        described = [
            {
                "extent": extent.extent_id,
                "base": extent.base,
                "slots": extent.slots,
                "slot_bytes": extent.slot_bytes,
            }
            for extent in extents
        ]
        descriptors = [table.fd, *(extent.fd for extent in extents)]
        self.send({"op": "extents", "extents": described}, descriptors)

    def _note_unmapped(self, message: protocol.Message, attachment: Attachment) -> None:
        wanted = protocol.numbers(message, "extents", protocol.MAX_MESSAGE_BYTES)
        for arena in self._server.arenas:
            arena.forget_holder(attachment, set(wanted))

    def _flush(self) -> None:
        while self._outgoing:
            data, descriptors = self._outgoing[0]
            if not self._try_to_send(data, descriptors):
                return
            if self._outgoing:
                self._outgoing.popleft()
                _close_all(descriptors)
        if self._peer.fileno() >= 0:
            self._loop.remove_writer(self._peer)
            self._announce()

    def _announce(self) -> None:
        """Sends what has been retired, unless other messages wait."""
        while self._retired and not self._outgoing and self._peer.fileno() >= 0:
            extent_ids = self._retired[:_IDS_PER_MESSAGE]
            del self._retired[:_IDS_PER_MESSAGE]
            self.send({"op": "retired", "extents": extent_ids})

    def _cut_off(self, reason: str) -> None:
        log.warning("attach: pid %d, uid %d cut off: %s", self._pid, self._uid, reason)
        self._hang_up()

    def _hang_up(self) -> None:
        """The connection has ended; the process is still watched, for its quarantine's sake."""
        if self._peer.fileno() < 0:
            return
        self._loop.remove_reader(self._peer)
        self._loop.remove_writer(self._peer)
        self._peer.close()
        while self._outgoing:
            _close_all(self._outgoing.popleft()[1])
        if self._call is not None:
            self._call.cancel()
        if self.attachment is None:
            self._server.connections.pop(self, None)
            return
        log.info("worker disconnected: pid %d", self._pid)
        sessions = self._server.sessions
        sessions.disconnect(self.attachment)
        is_holder = any(arena.is_held_by(self.attachment) for arena in self._server.arenas)
        if not sessions.has_quarantine(self.attachment) and not is_holder:
            sessions.process_gone(self.attachment)

    def _process_ended(self) -> None:
        assert self.attachment is not None
        self._loop.remove_reader(self._pidfd)
        self._hang_up()
        self._server.sessions.process_gone(self.attachment)


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _is_pidfd_of(descriptor: int, pid: int) -> bool:
    """Whether a descriptor is a pidfd of that process; 0 is one of a foreign PID namespace."""
    with suppress(OSError, ValueError), open(f"/proc/self/fdinfo/{descriptor}") as lines:
        for line in lines:
            if line.startswith("Pid:"):
                return int(line.split()[1]) == pid
    return False

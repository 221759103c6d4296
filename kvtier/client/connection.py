"""One life of a client's connection to one run of an agent."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

from kvtier.client.attachment import Attachment
from kvtier.client.device import WorkerDevice
from kvtier.client.service import Service
from kvtier.client.sessions import OpenSessions
from kvtier.client.slots import GrantedSlots
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AgentUnavailableError, InvalidRequestError, NoSharedMemoryError
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

SESSION_METADATA = "kvtier-session-bin"
_RELEASES_PER_CALL = 1024


class Connection:
    """A channel, an attach connection and open sessions. Thread-safe.

    It knows who may still write to reserved slots: the client attaches anew only when nobody does,
    because attaching says that nothing of it writes any more.
    """

    def __init__(self, address: str, client_id: bytes, timeout_seconds: float) -> None:
        self._service = Service(address, pb.DESCRIPTOR.services_by_name["BlockCache"])
        try:
            capabilities = self._service.call(
                "GetCapabilities", pb.GetCapabilitiesRequest(), timeout_seconds
            )
            if not capabilities.attach_socket:
                raise NoSharedMemoryError("this agent's memory cannot be mapped from here")
            attach_path = socket_path(address).parent / capabilities.attach_socket
            self._attachment = Attachment(str(attach_path), client_id, timeout_seconds)
        except BaseException:
            self._service.close()
            raise
        self.epoch = self._attachment.epoch
        self._has_devices = block_pb2.TIER_GPU in capabilities.tiers
        #: Whether loads may answer slots on the worker's device.
        self.reads_device = False
        self._writers: WeakSet[object] = WeakSet()
        self._retired = False
        self._lock = threading.Lock()
        self._sessions = OpenSessions(self._attachment.token)
        self._releases: defaultdict[bytes, list[int]] = defaultdict(list)

    def use_device(self, device: WorkerDevice, timeout_seconds: float) -> None:
        """From now on memory is registered for this device, and loads may answer slots on it."""
        self._attachment.pin_for(device)
        if self._has_devices:
            self.reads_device = self._attachment.place(device, timeout_seconds)

    def call(self, method: str, session: bytes, request: Any, timeout_seconds: float) -> Any:
        """One call of the request path: directly if it is small, else by gRPC."""
        body = self._attachment.call(method, session, request, timeout_seconds)
        if body is not None:
            return self._service.response(method, body)
        self._attachment.poll()
        metadata = ((SESSION_METADATA, session),)
        return self._service.call(method, request, timeout_seconds, metadata)

    def null_call(self, timeout_seconds: float) -> int:
        """A gRPC call that does nothing; the agent's epoch."""
        answer = self._service.call("GetCapabilities", pb.GetCapabilitiesRequest(), timeout_seconds)
        epoch: int = answer.epoch
        return epoch

    def session(self, spec: NamespaceSpec, worker: str, timeout_seconds: float) -> bytes:
        """The session of a namespace, opened at the first call."""
        token = self._sessions.find(spec)
        if token is not None:
            return token
        request = self._sessions.request(spec, worker)
        return self._sessions.opened(
            spec, self._service.call("OpenSession", request, timeout_seconds)
        )

    def slots(
        self,
        session: bytes,
        statuses: Sequence[int],
        slots: block_pb2.Slots,
        block_bytes: int,
        timeout_seconds: float,
    ) -> GrantedSlots:
        """A grant's slots, their extents mapped."""
        wanted = set(slots.extent) - {0}
        extents = self._attachment.get(session, wanted, timeout_seconds)
        return GrantedSlots(list(statuses), slots, extents, block_bytes)

    def release_later(self, session: bytes, lease_id: int) -> None:
        """Ends a lease with the session's next load or store; without one, it ends by its TTL."""
        if lease_id:  # 0 stands for none: nothing was loaded
            with self._lock:
                self._releases[session].append(lease_id)

    @contextmanager
    def releases(self, session: bytes) -> Iterator[list[int]]:
        """Leases to be ended by the call in the block; kept for the next one if that fails."""
        with self._lock:
            waiting = self._releases.pop(session, [])
        now, later = waiting[:_RELEASES_PER_CALL], waiting[_RELEASES_PER_CALL:]
        try:
            yield now
        except BaseException:
            later = waiting
            raise
        finally:
            if later:
                with self._lock:
                    self._releases[session] += later

    def start_writing(self, writer: object) -> None:
        """Until `end_writing`, or until nobody refers to the writer any more.

        Raises AgentUnavailableError if the connection has been given up meanwhile.
        """
        with self._lock:
            if self._retired:
                raise AgentUnavailableError("the connection ended during the call")
            self._writers.add(writer)

    def end_writing(self, writer: object) -> None:
        with self._lock:
            self._writers.discard(writer)

    def retire(self) -> bool:
        """Gives the connection up, unless somebody may still write to reserved slots."""
        with self._lock:
            self._retired = not self._writers
            return self._retired

    def close(self) -> None:
        self._attachment.close()
        self._service.close()


def socket_path(address: str) -> Path:
    """The path in a gRPC target `unix:PATH`. Raises InvalidRequestError for any other."""
    scheme, _, path = address.partition(":")
    if scheme != "unix" or not path:
        raise InvalidRequestError(
            f"address is {address!r}; it must be unix:PATH, the path of the agent's worker.sock"
        )
    return Path("/" + path.lstrip("/") if path.startswith("//") else path)

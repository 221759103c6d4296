"""One life of a client's connection to one run of an agent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier.client.attachment import Attachment
from kvtier.client.service import Service
from kvtier.client.slots import GrantedSlots
from kvtier.core.namespace import Identity, NamespaceSpec
from kvtier.errors import InvalidRequestError
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

log = logging.getLogger(__name__)

SESSION_METADATA = "kvtier-session-bin"
_RELEASES_PER_CALL = 1024


class Connection:
    """A channel, an attach connection and open sessions. Thread-safe.

    `writing` counts who may still write to reserved slots: the client attaches anew only when
    nobody does, because attaching says that it has unmapped everything.
    """

    def __init__(self, address: str, client_id: bytes, timeout_seconds: float) -> None:
        self._service = Service(address, pb.DESCRIPTOR.services_by_name["BlockCache"])
        try:
            capabilities = self._service.call(
                "GetCapabilities", pb.GetCapabilitiesRequest(), timeout_seconds
            )
            attach_path = socket_path(address).parent / capabilities.attach_socket
            self._attachment = Attachment(str(attach_path), client_id, timeout_seconds)
        except BaseException:
            self._service.close()
            raise
        self.epoch = self._attachment.epoch
        self.writing = 0
        self._lock = threading.Lock()
        self._sessions: dict[Identity, bytes] = {}
        self._releases: list[tuple[bytes, int]] = []

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
        with self._lock:
            token = self._sessions.get(spec.identity)
        if token is not None:
            return token
        request = pb.OpenSessionRequest(
            namespace=spec_message(spec), attach_token=self._attachment.token, worker=worker
        )
        answer = self._service.call("OpenSession", request, timeout_seconds)
        if answer.sibling_differences:
            log.warning(
                "kvtier: namespace %s shares its name with one of another layout, and nothing "
                "else; they differ in %s",
                spec.label,
                ", ".join(answer.sibling_differences),
            )
        with self._lock:
            return self._sessions.setdefault(spec.identity, answer.session_token)

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
        """Ends a lease with the session's next call; without one, it ends by its TTL."""
        with self._lock:
            self._releases.append((session, lease_id))

    def releases(self, session: bytes) -> list[int]:
        """Leases of the session to be ended now."""
        with self._lock:
            mine = [entry for entry in self._releases if entry[0] == session][:_RELEASES_PER_CALL]
            self._releases = [entry for entry in self._releases if entry not in mine]
        return [lease_id for _, lease_id in mine]

    def writing_started(self) -> None:
        with self._lock:
            self.writing += 1

    def writing_ended(self) -> None:
        with self._lock:
            self.writing -= 1

    def close(self) -> None:
        self._attachment.close()
        self._service.close()


def socket_path(address: str) -> Path:
    """The path in a gRPC target `unix:PATH`."""
    scheme, _, path = address.partition(":")
    if scheme != "unix" or not path:
        raise InvalidRequestError(
            f"address is {address!r}; it must be unix:PATH, the path of the agent's worker.sock"
        )
    return Path("/" + path.lstrip("/") if path.startswith("//") else path)


def spec_message(spec: NamespaceSpec) -> block_pb2.NamespaceSpec:
    fields: dict[str, Any] = spec.layout_fields()
    return block_pb2.NamespaceSpec(tenant=spec.tenant, name=spec.name, **fields)

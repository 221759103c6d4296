"""Who is connected, and what ends when they go."""

from __future__ import annotations

import itertools
import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kvtier.access.credential import LOCAL, Caller
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.core.attach import TOKEN_BYTES
from kvtier.core.lease import Lease, LeaseTable
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import (
    AccessDeniedError,
    OverloadedError,
    SessionLostError,
    UnauthenticatedError,
)

ANY_TENANT = "*"


@dataclass(frozen=True)
class Access:
    """Which tenants a peer may use; `*` stands for all."""

    tenants: frozenset[str]

    def allows(self, tenant: str) -> bool:
        return ANY_TENANT in self.tenants or tenant in self.tenants


@dataclass(frozen=True)
class AccessRule:
    """A peer with this user id, or of this group id, may use these tenants."""

    tenants: tuple[str, ...]
    uid: int | None = None
    gid: int | None = None


def access_of(rules: Sequence[AccessRule], uid: int, gid: int) -> Access | None:
    """What the rules give a peer; None if no rule names it."""
    mine = [rule for rule in rules if rule.uid == uid or rule.gid == gid]
    if not mine:
        return None
    return Access(frozenset(tenant for rule in mine for tenant in rule.tenants))


@dataclass(eq=False)
class Attachment:
    """One attach connection of one worker process.

    `client_id` is a secret of the client's choosing, the same for all its connections: by it a
    client that attaches again proves that it has unmapped what it had before. `caller` is who may
    use its sessions.
    """

    client_id: bytes
    uid: int
    gid: int
    pid: int
    access: Access
    caller: Caller = LOCAL
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))
    sessions: dict[int, Session] = field(default_factory=dict)
    connected: bool = True
    #: The number of the device that the worker is on; 0: none of the agent's.
    device: int = 0


@dataclass(eq=False)
class Session:
    """One namespace opened over one attachment."""

    session_id: int
    namespace: Namespace
    worker: str
    attachment: Attachment
    created_at: float
    #: What the worker says it takes to compute a block's tokens; 0.0 if it has not said.
    compute_seconds_per_block: float = 0.0
    #: Without shared memory: the holder of its streams' leases, which no call can name.
    leaser: Session | None = None
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))


class Sessions:
    """Attachments and sessions.

    The end of a connection ends its sessions: leases and holds are released at once, reservations
    are quarantined until the process is gone or the same client attaches again. `release` gives the
    slots of a lease back, `on_gone` is told when an attachment can map nothing any more.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        leases: LeaseTable,
        *,
        limit: int,
        wall_clock: Callable[[], float],
        release: Callable[[Lease], None],
        on_gone: Callable[[Attachment], None],
    ) -> None:
        self._namespaces = namespaces
        self._leases = leases
        self._limit = limit
        self._wall_clock = wall_clock
        self._release = release
        self._on_gone = on_gone
        self._ids = itertools.count(1)
        self._attachments: dict[bytes, Attachment] = {}
        self._lingering: set[Attachment] = set()
        self._by_token: dict[bytes, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_token.values())

    def __len__(self) -> int:
        return len(self._by_token)

    def attach(self, client_id: bytes, uid: int, gid: int, pid: int, access: Access) -> Attachment:
        """A new connection. What its client left behind earlier is free now."""
        if len(self._attachments) >= self._limit:
            raise OverloadedError(
                f"{self._limit} workers are attached, as many as limits.max_sessions allows"
            )
        for old in [each for each in self._lingering if each.client_id == client_id]:
            self.process_gone(old)
        attachment = Attachment(client_id, uid, gid, pid, access)
        self._attachments[attachment.token] = attachment
        return attachment

    def open(
        self, attach_token: bytes, spec: NamespaceSpec, worker: str
    ) -> tuple[Session, list[str]]:
        """Opens a namespace; answers with the fields in which its siblings differ."""
        attachment = self._attachments.get(attach_token)
        if attachment is None:
            raise UnauthenticatedError(
                "attach_token is unknown: attach over the attach socket first, and keep that "
                "connection open"
            )
        return self.open_for(attachment, spec, worker)

    def open_for(
        self, attachment: Attachment, spec: NamespaceSpec, worker: str
    ) -> tuple[Session, list[str]]:
        """As `open`, for a peer that is known, or for one that has no connection to hold it."""
        if not attachment.access.allows(spec.tenant):
            raise AccessDeniedError(
                f"uid {attachment.uid} may not use tenant {spec.tenant!r}: see `workers` in the "
                "agent's configuration"
            )
        if len(self._by_token) >= self._limit:
            raise OverloadedError(
                f"{len(self._by_token)} sessions are open, as many as limits.max_sessions allows"
            )
        namespace, differences = self._namespaces.register(spec)
        session = Session(
            next(self._ids), namespace, worker, attachment, created_at=self._wall_clock()
        )
        namespace.session_count += 1
        attachment.sessions[session.session_id] = session
        self._by_token[session.token] = session
        return session, differences

    def hidden(self, session: Session) -> Session:
        """Another holder of leases in the same namespace, that ends with the session; no token
        finds it, and it does not count."""
        peer, namespace = session.attachment, session.namespace
        return Session(next(self._ids), namespace, session.worker, peer, session.created_at)

    def find(self, token: bytes) -> Session:
        session = self._by_token.get(token)
        if session is None:
            raise SessionLostError(
                "unknown session: the agent was restarted or the worker's attach connection ended; "
                "attach again and start from a lookup"
            )
        return session

    def compute_seconds_per_block(self, namespace: Namespace) -> float:
        """What it takes the workers of a namespace to compute the tokens of a block: the median of
        what its open sessions say, 0.0 if none of them does.

        Those that look up say it; those that load are often others.
        """
        said = [
            session.compute_seconds_per_block
            for session in self._by_token.values()
            if session.namespace is namespace and session.compute_seconds_per_block
        ]
        return statistics.median(said) if said else 0.0

    def disconnect(self, attachment: Attachment) -> None:
        """The connection has ended; the process may live on and write to what it reserved."""
        if not attachment.connected:
            return
        attachment.connected = False
        if self._attachments.pop(attachment.token, None) is not None:
            self._lingering.add(attachment)
        for session in attachment.sessions.values():
            del self._by_token[session.token]
            session.namespace.session_count -= 1
            for lease in self._leases.of_session(session.session_id):
                if self._leases.end(lease):
                    self._release(lease)

    def has_quarantine(self, attachment: Attachment) -> bool:
        """Whether slots wait for the end of its process."""
        return any(self._leases.of_session(session_id) for session_id in attachment.sessions)

    def process_gone(self, attachment: Attachment) -> None:
        """Nobody can write any more: its process has ended, or it has unmapped everything."""
        self.disconnect(attachment)
        if attachment not in self._lingering:
            return
        self._lingering.remove(attachment)
        for session in attachment.sessions.values():
            for lease in self._leases.of_session(session.session_id):
                if self._leases.drop(lease):
                    self._release(lease)
        self._on_gone(attachment)

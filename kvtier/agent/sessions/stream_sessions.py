"""Sessions without shared memory: they live by a time to live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from kvtier.access.credential import LOCAL, Caller
from kvtier.agent.sessions.sessions import Access, Attachment, Session, Sessions
from kvtier.core.lease import LeaseTable
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AccessDeniedError, NoSharedMemoryError, SessionLostError

#: Of a peer that nobody has asked who it is: as chown and others write "no one".
UNKNOWN_ID = 2**32 - 1


class StreamSessions:
    """Opens them, and ends those of which no call came for `ttl_seconds`, on the clock of leases.

    A stream under way keeps its session. `access` is what whoever can call may use without saying
    who it is; None: nothing.
    """

    def __init__(
        self, sessions: Sessions, leases: LeaseTable, *, access: Access | None, ttl_seconds: float
    ) -> None:
        self.ttl_seconds = ttl_seconds
        self._sessions = sessions
        self._leases = leases
        self._access = access
        self._timer: asyncio.TimerHandle | None = None
        #: When each ends, the next one first: every renewal puts its session at the end.
        self._deadlines: dict[Session, float] = {}
        self._streams: dict[Session, int] = {}

    def open(
        self, spec: NamespaceSpec, worker: str, caller: Caller = LOCAL
    ) -> tuple[Session, list[str]]:
        """As `Sessions.open`. Raises AccessDeniedError where local callers have to attach.

        What others may use, their credential says.
        """
        access = self._local_access(spec) if caller is LOCAL else Access(caller.scope.tenants)
        peer = Attachment(b"", UNKNOWN_ID, UNKNOWN_ID, 0, access, caller)
        session, differences = self._sessions.open_for(peer, spec, worker)
        session.leaser = self._sessions.hidden(session)
        self.renew(session)
        return session, differences

    def _local_access(self, spec: NamespaceSpec) -> Access:
        if self._access is None:
            raise AccessDeniedError(
                "attach_token is empty: this agent lets in only workers that attach (another user "
                "than the agent's may connect to its socket, or `workers` names who may; see "
                "`streams.tenants` in the agent's configuration)"
            )
        if not self._access.allows(spec.tenant):
            raise AccessDeniedError(
                f"tenant {spec.tenant!r} may not be used without attaching: see `streams.tenants` "
                "in the agent's configuration"
            )
        return self._access

    def renew(self, session: Session) -> None:
        """A call of it has come; nothing for a session with shared memory."""
        if session.leaser is None or not session.attachment.connected:
            return
        self._deadlines.pop(session, None)
        self._deadlines[session] = self._leases.now() + self.ttl_seconds
        if self._timer is None:
            self._schedule()

    @contextmanager
    def streaming(self, session: Session) -> Iterator[Session]:
        """Keeps a session for the length of a stream; the session that its leases belong to.

        No call of the client names those leases: only the stream itself knows when a thread has
        done with their slots. Raises NoSharedMemoryError for a session that has shared memory: its
        slots may be given back by others than the stream.
        """
        if session.leaser is None:
            raise NoSharedMemoryError(
                "ReadBlocks and WriteBlocks are for sessions without shared memory: use LoadBlocks "
                "and ReserveBlocks, or open a session without attach_token"
            )
        self._streams[session] = self._streams.get(session, 0) + 1
        try:
            yield session.leaser
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
            self.renew(session)

    def expire(self) -> None:
        """Ends what is past its time. Called when the next one is due."""
        self._timer = None
        now = self._leases.now()
        while self._deadlines:
            session, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            if session in self._streams:
                self.renew(session)
            else:
                del self._deadlines[session]
                self._sessions.disconnect(session.attachment)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None or not self._deadlines:
            return
        deadline = next(iter(self._deadlines.values()))
        delay = max(0.0, deadline - self._leases.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self.expire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def require_connected(session: Session) -> None:
    """Raises SessionLostError if the session ended during a stream."""
    if not session.attachment.connected:
        raise SessionLostError("the session ended during the stream; open another one")


def require_shared_memory(session: Session) -> None:
    """Raises NoSharedMemoryError for calls that answer with slots."""
    if session.leaser is not None:
        raise NoSharedMemoryError(
            "this session has no shared memory: ReadBlocks and WriteBlocks move its bytes"
        )

"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvtier.access.role import Role
from kvtier.access.scope import ALL, Scope
from kvtier.errors import AccessDeniedError, UnauthenticatedError


@dataclass(frozen=True)
class Credential:
    """What the agent knows of a caller; `expires_at` is in Unix seconds, None: never."""

    name: str
    role: Role | None
    scope: Scope
    expires_at: float | None = None


@dataclass(frozen=True)
class Caller:
    """A credential on one connection, which gRPC names by the peer's address."""

    credential: Credential
    connection: str

    @property
    def scope(self) -> Scope:
        return self.credential.scope

    def require_same(self, other: Caller) -> None:
        """What this caller has opened, only it may use.

        Credentials are the same by name: a token that was renewed goes on. Raises
        AccessDeniedError for another credential, UnauthenticatedError for another connection.
        """
        if other.credential.name != self.credential.name:
            raise AccessDeniedError("the session belongs to another credential; open one yourself")
        if other.connection != self.connection:
            raise UnauthenticatedError(
                "the session was opened over another connection; open one over this connection"
            )


#: Whoever came over a Unix socket: its modes, and the attach socket, have let them in.
LOCAL: Final = Caller(Credential("", None, ALL), "")

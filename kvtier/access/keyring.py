"""The credentials that an agent knows."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping

from kvtier.access.credential import Credential
from kvtier.access.proof import Proof, ProofKind
from kvtier.access.tokens import is_token, token_digest
from kvtier.errors import UnauthenticatedError


class Keyring:
    """Finds credentials by what a caller shows. `wall_clock` gives Unix seconds.

    Errors are UnauthenticatedErrors, which repeat nothing of what was shown.
    """

    def __init__(
        self, credentials: Mapping[Proof, Credential], wall_clock: Callable[[], float]
    ) -> None:
        self._wall_clock = wall_clock
        self.replace(credentials)

    def replace(self, credentials: Mapping[Proof, Credential]) -> None:
        """From now on these, and no others, are known."""
        self._tokens = [
            (bytes.fromhex(proof.value), credential)
            for proof, credential in credentials.items()
            if proof.kind is ProofKind.TOKEN
        ]
        self._certified = {
            proof: credential
            for proof, credential in credentials.items()
            if proof.kind is not ProofKind.TOKEN
        }
        self._known = frozenset(credentials.values())

    def __len__(self) -> int:
        return len(self._tokens) + len(self._certified)

    def by_token(self, token: str) -> Credential:
        """Takes as long for any token: all hashes are compared, each in constant time."""
        found: Credential | None = None
        if is_token(token):
            digest = token_digest(token)
            for known, credential in self._tokens:
                if hmac.compare_digest(known, digest):
                    found = credential
        if found is None:
            raise UnauthenticatedError("the token is unknown: see listen.credentials_file")
        return self.require_current(found)

    def by_certificate(self, names: Iterable[Proof]) -> Credential:
        """Of the first name of a verified certificate that is known."""
        for name in names:
            if (found := self._certified.get(name)) is not None:
                return self.require_current(found)
        raise UnauthenticatedError(
            "no token, and no name of the client's certificate is known: see "
            "listen.credentials_file"
        )

    def require_current(self, credential: Credential) -> Credential:
        """The same; raises UnauthenticatedError if it has been taken back, or has expired."""
        if credential not in self._known:
            raise UnauthenticatedError("the credential has been taken back")
        if credential.expires_at is not None and self._wall_clock() >= credential.expires_at:
            raise UnauthenticatedError("the credential has expired")
        return credential

"""How a caller shows that a credential is its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kvtier.errors import InvalidRequestError


class ProofKind(StrEnum):
    """As a credentials file writes them."""

    TOKEN = "sha256"
    """The SHA-256 of a bearer token."""
    DNS = "dns"
    """A DNS name that the client's certificate is for."""
    URI = "uri"
    """A URI that the client's certificate is for."""


_VALUES: Final = {
    ProofKind.TOKEN: re.compile(r"[0-9a-f]{64}"),
    ProofKind.DNS: re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"),
    ProofKind.URI: re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"),
}


@dataclass(frozen=True)
class Proof:
    """`sha256:HEX`, `dns:NAME` or `uri:URI`."""

    kind: ProofKind
    value: str

    @staticmethod
    def parse(text: str) -> Proof:
        """Raises InvalidRequestError, which repeats nothing of the text."""
        kind, _, value = text.partition(":")
        if kind not in list(ProofKind) or not _VALUES[ProofKind(kind)].fullmatch(value):
            raise InvalidRequestError(
                "a proof is sha256: and 64 hexadecimal digits, dns: and a name, or uri: and a URI"
            )
        value = value.lower() if kind == ProofKind.DNS else value
        return Proof(ProofKind(kind), value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

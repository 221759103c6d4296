"""The certificates of a listener, and the names in those of its callers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from kvtier.access.proof import Proof, ProofKind

#: As gRPC calls the names of a verified certificate.
_KINDS: Final = {"peer_dns": ProofKind.DNS, "peer_uri": ProofKind.URI}


@dataclass(frozen=True)
class Certificates:
    """In PEM: the agent's own with its key, and the CA of those who call."""

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes
    #: Of the agent's own, in Unix seconds; None if that cannot be seen.
    expires_at: float | None = None


def certified_names(properties: Mapping[str, Iterable[bytes]]) -> Iterator[Proof]:
    """The subject alternative names of a connection's certificate, as gRPC gives them."""
    for key, kind in _KINDS.items():
        for value in properties.get(key, ()):
            name = value.decode("utf-8", "replace")
            yield Proof(kind, name.lower() if kind is ProofKind.DNS else name)

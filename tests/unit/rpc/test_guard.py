"""What a guard makes of a connection and of a call's metadata."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvtier.access.credential import Credential
from kvtier.access.keyring import Keyring
from kvtier.access.proof import Proof, ProofKind
from kvtier.access.role import Role
from kvtier.access.scope import ALL
from kvtier.access.tokens import make_token, token_digest
from kvtier.errors import UnauthenticatedError
from kvtier.rpc.guard import Guard

TOKEN = make_token()
BY_TOKEN = Credential("by token", Role.READER, ALL)
BY_NAME = Credential("by name", Role.OPERATOR, ALL)
GUARD = Guard(
    Keyring(
        {
            Proof(ProofKind.TOKEN, token_digest(TOKEN).hex()): BY_TOKEN,
            Proof(ProofKind.DNS, "node.example"): BY_NAME,
        },
        lambda: 0.0,
    )
)


def context(version: bytes | None = b"TLSv1.3", **metadata: str) -> Any:
    """As gRPC gives it of a client with a certificate for node.example."""
    properties = {"peer_dns": [b"Node.Example"]}
    if version is not None:
        properties["ssl_tls_version"] = [version]
    return SimpleNamespace(
        auth_context=lambda: properties,
        invocation_metadata=lambda: tuple(metadata.items()),
        peer=lambda: "ipv4:10.0.0.1:5",
    )


def test_a_token_counts_instead_of_the_certificate() -> None:
    assert GUARD.caller(context()).credential == BY_NAME
    caller = GUARD.caller(context(authorization=f"Bearer {TOKEN}"))
    assert (caller.credential, caller.connection) == (BY_TOKEN, "ipv4:10.0.0.1:5")
    assert GUARD.caller(context(authorization=f"bearer {TOKEN}")).credential == BY_TOKEN
    for wrong in ("Bearer ", f"Bearer  {TOKEN}", TOKEN, f"Basic {TOKEN}", ""):
        with pytest.raises(UnauthenticatedError):
            GUARD.caller(context(authorization=wrong))


@pytest.mark.parametrize("version", [b"TLSv1.2", b"TLSv1.1", b""])
def test_a_call_over_older_tls_is_refused(version: bytes) -> None:
    with pytest.raises(UnauthenticatedError, match=r"TLS 1\.3 is required"):
        GUARD.caller(context(version, authorization=f"Bearer {TOKEN}"))

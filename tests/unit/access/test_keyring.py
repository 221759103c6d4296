"""Behaviour of credentials, scopes and tokens."""

from __future__ import annotations

import pytest

from kvtier.access.credential import Caller, Credential
from kvtier.access.keyring import Keyring
from kvtier.access.policy import METHODS, Reach, require_reach, require_role
from kvtier.access.proof import Proof, ProofKind
from kvtier.access.role import Role
from kvtier.access.scope import ALL, Scope
from kvtier.access.tokens import is_token, make_token, token_digest
from kvtier.errors import AccessDeniedError, InvalidRequestError, UnauthenticatedError
from kvtier.v1 import cache_admin_pb2 as pb


def credential(*patterns: str, role: Role = Role.WORKER, until: float | None = None) -> Credential:
    return Credential("one", role, Scope(frozenset(patterns)), until)


def keyring(*entries: tuple[Proof, Credential], now: float = 0.0) -> Keyring:
    return Keyring(dict(entries), lambda: now)


def proof_of(token: str) -> Proof:
    return Proof(ProofKind.TOKEN, token_digest(token).hex())


def test_a_token_is_found_by_its_hash() -> None:
    tokens = [make_token() for _ in range(3)]
    known = [Credential(f"c{number}", Role.WORKER, ALL) for number in range(3)]
    ring = keyring(*zip(map(proof_of, tokens), known, strict=True))
    assert [ring.by_token(token) for token in tokens] == known
    assert all(map(is_token, tokens))


@pytest.mark.parametrize(
    "token", ["", "kvt_", "short", "kvt_" + "A" * 42, "kvt_" + "A" * 43 + "\n"]
)
def test_what_is_no_token_is_none_though_its_hash_be_known(token: str) -> None:
    ring = keyring((proof_of(token), credential("*")))
    with pytest.raises(UnauthenticatedError, match="the token is unknown"):
        ring.by_token(token)


def test_a_certificate_is_found_by_any_of_its_names_and_kinds_are_apart() -> None:
    ring = keyring((Proof(ProofKind.DNS, "a.example"), credential("*")))
    names = [Proof(ProofKind.URI, "a.example"), Proof(ProofKind.DNS, "b.example")]
    with pytest.raises(UnauthenticatedError, match="no name of the client's certificate"):
        ring.by_certificate(names)
    assert ring.by_certificate([*names, Proof(ProofKind.DNS, "a.example")]) == credential("*")


def test_a_credential_ends_by_its_time_and_by_replacing() -> None:
    token = make_token()
    entry = proof_of(token), credential("*", until=10.0)
    assert keyring(entry, now=9.9).by_token(token) == entry[1]
    with pytest.raises(UnauthenticatedError, match="expired"):
        keyring(entry, now=10.0).by_token(token)
    ring = keyring(entry)
    found = ring.by_token(token)
    ring.replace({})
    with pytest.raises(UnauthenticatedError, match="taken back"):
        ring.require_current(found)
    with pytest.raises(UnauthenticatedError, match="unknown"):
        ring.by_token(token)


@pytest.mark.parametrize(
    ("patterns", "covered", "not_covered"),
    [
        (["*"], ["a/m", "b/n"], []),
        (["a/*"], ["a/m", "a/n"], ["b/m", "aa/m", "a./m"]),
        (["a/m", "b/*"], ["a/m", "b/n"], ["a/n", "a/mm", "c/m"]),
    ],
)
def test_a_scope_covers_what_its_patterns_say(
    patterns: list[str], covered: list[str], not_covered: list[str]
) -> None:
    scope = Scope(frozenset(patterns))
    for label in covered:
        scope.require_selected(f"{label}@0123")
    for label in [*not_covered, *([] if scope.is_all else ["", "*", "c", "c/*", "/"])]:
        with pytest.raises(AccessDeniedError):
            scope.require_selected(label)


def test_a_scope_covers_all_of_a_pattern_only_with_as_much() -> None:
    scope = Scope(frozenset({"a/*", "b/m"}))
    assert [scope.covers_all_of(each) for each in ("a/*", "a/m", "b/m", "b/*", "*")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert ALL.covers_all_of("*")


@pytest.mark.parametrize("pattern", ["", "a", "a/", "/m", "*/m", "a/m*", "A/m", "a/m@01", "a/b/c"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequestError, match="names no namespaces"):
        Scope(frozenset({pattern}))


def test_a_session_is_of_one_credential_by_name_and_one_connection() -> None:
    owner = Caller(credential("a/*"), "ipv4:1")
    owner.require_same(Caller(credential("*"), "ipv4:1"))
    with pytest.raises(UnauthenticatedError, match="another connection"):
        owner.require_same(Caller(credential("a/*"), "ipv4:2"))
    other = Credential("two", Role.WORKER, ALL)
    with pytest.raises(AccessDeniedError, match="another credential"):
        owner.require_same(Caller(other, "ipv4:1"))


def test_a_method_that_the_policy_does_not_know_is_for_nobody() -> None:
    for role in Role:
        with pytest.raises(AccessDeniedError, match="nobody off this node"):
            require_role(credential("*", role=role), "kvtier.v1.CacheAdmin.SomethingNew")


@pytest.mark.parametrize(
    "method", [name for name, need in METHODS.items() if need.reach is Reach.AGENT]
)
def test_what_concerns_the_agent_needs_all_namespaces(method: str) -> None:
    require_role(credential("*", role=Role.OPERATOR), method)
    with pytest.raises(AccessDeniedError, match="concerns all namespaces"):
        require_role(credential("a/*", role=Role.OPERATOR), method)


def test_no_name_is_all_names_to_those_who_have_not_all() -> None:
    mine = credential("a/*", role=Role.OPERATOR)
    method = "kvtier.v1.CacheAdmin.EvictBlocks"
    with pytest.raises(InvalidRequestError, match="namespace is empty"):
        require_reach(mine, method, pb.EvictBlocksRequest())
    require_reach(mine, method, pb.EvictBlocksRequest(namespace="a/m"))
    require_reach(mine, "kvtier.v1.CacheAdmin.GetStats", pb.GetStatsRequest())

"""Role, method, namespace and transport: every cell, on real agents."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Final

import pytest

import kvtier.v1
from kvtier.access.policy import METHODS as POLICY
from kvtier.access.role import Role
from kvtier.access.tokens import make_token
from kvtier.core.status import Code
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent
from tests.access.calls import METHODS, Person, code_of

NAMESPACES: Final = ("a/m", "a/other", "b/m")

#: By name: the role, and the namespaces above that it has a right to. Written by hand: what the
#: agents do is compared with this, not with what they think.
PEOPLE: Final = {
    "worker-all": (Role.WORKER, "*", {"a/m", "a/other", "b/m"}),
    "worker-a": (Role.WORKER, "a/*", {"a/m", "a/other"}),
    "worker-am": (Role.WORKER, "a/m", {"a/m"}),
    "operator-all": (Role.OPERATOR, "*", {"a/m", "a/other", "b/m"}),
    "operator-a": (Role.OPERATOR, "a/*", {"a/m", "a/other"}),
    "reader-all": (Role.READER, "*", {"a/m", "a/other", "b/m"}),
    "reader-am": (Role.READER, "a/m", {"a/m"}),
}
READING: Final = {
    "GetStats", "WatchStats", "ListPins", "ListSessions", "ListNamespaces", "ListNodes",
    "ExplainBlocks", "ListBlocks", "ListRequests", "GetRequest", "WatchEvents",
}  # fmt: skip
OF_THE_AGENT: Final = {
    "ListNodes", "ResizeTier", "FlushTier", "ScrubTier", "DrainAgent", "ResumeAgent",
}  # fmt: skip
OF_NO_NAMESPACE: Final = {"GetCapabilities", "ListSessions", "ListNamespaces", "DeletePin"}
STRANGERS: Final = ("nobody", "forger", "expired")
TRANSPORTS: Final = ("tls with certificates", "tls with tokens", "insecure with tokens")


def is_allowed(name: str, method: str, label: str) -> bool:
    """What this cell of the matrix should be."""
    role, _, covered = PEOPLE[name]
    service, _, verb = method.removeprefix("kvtier.v1.").partition(".")
    is_of_role = {
        Role.WORKER: service == "BlockCache",
        Role.OPERATOR: service in ("CacheAdmin", "CacheEvents"),
        Role.READER: verb in READING,
    }[role]
    if not is_of_role or (verb in OF_THE_AGENT and len(covered) < len(NAMESPACES)):
        return False
    return verb in OF_THE_AGENT | OF_NO_NAMESPACE or label in covered


@pytest.fixture(scope="module")
def callers() -> Callers:
    made = Callers()
    for name, (role, pattern, _) in PEOPLE.items():
        made.add(name, role, pattern)
    made.add("expired", Role.OPERATOR, "*", expires_at=1e9)
    return made


@pytest.fixture(scope="module")
def agents(
    callers: Callers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RemoteAgent]]:
    """With TLS, and without."""
    one, two = tmp_path_factory.mktemp("tls"), tmp_path_factory.mktemp("insecure")
    names = [f"{name}=DNS:{name}.example" for name in [*PEOPLE, *STRANGERS]]
    make_certificates(one / "certificates", *names)
    with (
        remote_agent(one, callers, one / "certificates") as tls,
        remote_agent(two, callers, None) as insecure,
    ):
        yield {"tls": tls, "insecure": insecure}


def agent_of(agents: dict[str, RemoteAgent], transport: str) -> RemoteAgent:
    return agents[transport.split()[0]]


def person(agent: RemoteAgent, callers: Callers, transport: str, name: str) -> Person:
    """With the credential of that name, as the transport shows it."""
    certificate, token = name, ""
    if transport.endswith("tokens") and name != "nobody":
        certificate = "nobody"
        token = callers.tokens.get(name) or make_token()
    return Person(
        agent.endpoint(certificate, token),
        agent.endpoint(certificate, token, "admin_address"),
    )


@pytest.fixture
def local(agents: dict[str, RemoteAgent]) -> Iterator[dict[str, Person]]:
    """Over the Unix sockets."""
    found = {
        name: Person(agent.process.address, agent.process.admin_address)
        for name, agent in agents.items()
    }
    yield found
    for each in found.values():
        each.close()


def run_row(
    who: Person, method: str, sessions: dict[str, bytes], local: Person, lookups: dict[str, bytes]
) -> dict[str, Code | str | None]:
    """How calls of a method ended, by namespace; the agent goes on as before."""
    codes = {}
    for label in NAMESPACES:

        def look_up(label: str = label) -> None:
            local.call("kvtier.v1.BlockCache.LookupPrefix", label, lookups[label])

        def call(label: str = label) -> None:
            who.call(method, label, sessions.get(label, b""), look_up)

        codes[label] = code_of(call)
        if method.endswith("DrainAgent") and codes[label] is None:
            local.call("kvtier.v1.CacheAdmin.ResumeAgent", label)
    return codes


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_known_caller_gets_what_its_role_and_namespaces_allow(
    agents: dict[str, RemoteAgent],
    callers: Callers,
    local: dict[str, Person],
    transport: str,
    name: str,
) -> None:
    agent, insider = agent_of(agents, transport), local[transport.split()[0]]
    wrong = {}
    with (
        person(agent, callers, transport, name) as who,
        person(agent, callers, transport, "worker-all") as owner,
    ):
        lookups = {label: insider.open(label) for label in NAMESPACES}
        sessions = {label: owner.open(label) for label in NAMESPACES}
        for label in NAMESPACES:  # own sessions where it can have them, else those of another
            if is_allowed(name, "kvtier.v1.BlockCache.OpenSession", label):
                sessions[label] = who.open(label)
        for method in METHODS:
            for label, code in run_row(who, method, sessions, insider, lookups).items():
                if is_allowed(name, method, label):
                    is_right = code not in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
                    is_right = is_right and not isinstance(code, str) and code is not Code.INTERNAL
                else:
                    is_right = code is Code.PERMISSION_DENIED
                if not is_right:
                    wrong[method, label] = code
    assert not wrong


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stranger_gets_nothing(
    agents: dict[str, RemoteAgent],
    callers: Callers,
    local: dict[str, Person],
    transport: str,
    name: str,
) -> None:
    agent, insider = agent_of(agents, transport), local[transport.split()[0]]
    with (
        person(agent, callers, transport, name) as who,
        person(agent, callers, transport, "worker-all") as owner,
    ):
        sessions = {label: owner.open(label) for label in NAMESPACES}
        lookups = {label: insider.open(label) for label in NAMESPACES}
        codes = {
            (method, label): code
            for method in METHODS
            for label, code in run_row(who, method, sessions, insider, lookups).items()
        }
    assert {key: code for key, code in codes.items() if code is not Code.UNAUTHENTICATED} == {}


@pytest.mark.parametrize("which", ["tls", "insecure"])
def test_whoever_may_open_a_unix_socket_may_do_what_it_serves(
    local: dict[str, Person], which: str
) -> None:
    who = local[which]
    sessions = {label: who.open(label) for label in NAMESPACES}
    wrong = {}
    for method in METHODS:
        for label, code in run_row(who, method, sessions, who, sessions).items():
            refusals = (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.INTERNAL)
            if code in refusals or isinstance(code, str):
                wrong[method, label] = code
    assert not wrong


def test_the_policy_has_every_method_and_no_other() -> None:
    modules = [
        import_module(f"kvtier.v1.{each.name}")
        for each in iter_modules(kvtier.v1.__path__)
        if each.name.endswith("_pb2")
    ]
    served = {
        method.full_name
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert served == set(POLICY)

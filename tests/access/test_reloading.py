"""Credentials and certificates change while an agent runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kvtier import AsyncClient, Client, Tls
from kvtier.access.credential import Credential
from kvtier.access.role import Role
from kvtier.access.scope import Scope
from kvtier.access.tokens import make_token
from kvtier.cli.troubles import of_stats
from kvtier.client.admin import AdminClient
from kvtier.client.endpoint import Endpoint
from kvtier.core.status import Code
from kvtier.errors import AgentUnavailableError, UnauthenticatedError
from kvtier.testing.tcp_proxy import TcpProxy
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent, tls_of
from tests.access.calls import Person, code_of
from tests.faults.blocks import hashes_of, payloads, spec_of
from tests.faults.waiting import wait_until

LOOKUP = "kvtier.v1.BlockCache.LookupPrefix"
AGAIN = "read credentials again"
NEW_CERTIFICATES = "read certificates again"
KEPT = "the credentials that were read before still hold"
OLD_CERTIFICATES = "the certificates that were read before still hold"
SPEC = spec_of("m", 4096, tenant="a")
HASHES = hashes_of("reloading", 2)


@pytest.fixture
def callers() -> Callers:
    made = Callers()
    made.add("worker", Role.WORKER, "a/*")
    made.add("operator", Role.OPERATOR, "*")
    return made


@pytest.fixture
def agent(callers: Callers, tmp_path: Path) -> Iterator[RemoteAgent]:
    certificates = tmp_path / "certificates"
    make_certificates(certificates, "worker=DNS:worker.example", "operator=DNS:operator.example")
    with remote_agent(tmp_path, callers, certificates) as running:
        yield running


def rewrite(agent: RemoteAgent, callers: Callers, tmp_path: Path) -> None:
    """Returns when the agent has read the file again."""
    count = agent.process.log.count(AGAIN)
    callers.write(tmp_path / "credentials")
    agent.wait_for_log(AGAIN, count + 1)


def stats_code(agent: RemoteAgent, token: str) -> object:
    endpoint = agent.endpoint("operator", token, "admin_address")
    with AdminClient(endpoint) as admin:
        return code_of(admin.get_stats)


def test_a_new_token_is_let_in_and_one_taken_back_is_not(
    agent: RemoteAgent, callers: Callers, tmp_path: Path
) -> None:
    old = callers.tokens["operator"]
    with AdminClient(agent.endpoint("worker", old, "admin_address")) as admin:
        samples = admin.watch_stats(interval_seconds=0.1)
        next(samples)
        new = callers.add("operator", Role.OPERATOR, "a/*")
        assert stats_code(agent, new) is Code.UNAUTHENTICATED
        rewrite(agent, callers, tmp_path)
        assert stats_code(agent, new) is None
        assert stats_code(agent, old) is Code.UNAUTHENTICATED
        with pytest.raises(UnauthenticatedError, match="taken back"):  # also what goes on
            list(islice(samples, 100))


def test_a_token_ends_at_its_time(agent: RemoteAgent, callers: Callers, tmp_path: Path) -> None:
    token = callers.add("brief", Role.OPERATOR, "*", expires_at=time.time() + 2)
    rewrite(agent, callers, tmp_path)
    code = wait_until(lambda: stats_code(agent, token), 20, 0.05)
    assert code is Code.UNAUTHENTICATED
    assert time.time() >= int(callers.credentials["brief"].expires_at or 0)


def test_a_session_goes_on_with_a_new_token_and_not_beyond_what_is_left_of_its_right(
    agent: RemoteAgent, callers: Callers, tmp_path: Path
) -> None:
    endpoint = agent.endpoint("worker")
    with Person(endpoint, agent.process.admin_address) as worker:
        session = worker.open("a/m")
        callers.add("worker", Role.WORKER, "*")
        rewrite(agent, callers, tmp_path)
        assert code_of(lambda: worker.call(LOOKUP, "a/m", session)) is None
        callers.credentials["worker"] = Credential(
            "worker", Role.WORKER, Scope(frozenset({"a/other"}))
        )
        rewrite(agent, callers, tmp_path)
        assert code_of(lambda: worker.call(LOOKUP, "a/m", session)) is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("operator operator * sha256:12\n", 0o600),
        ("\xff", 0o600),
        ("", 0o644),
        (None, 0o600),
    ],
)
def test_a_broken_file_changes_nothing(
    agent: RemoteAgent, callers: Callers, tmp_path: Path, text: str | None, mode: int
) -> None:
    file = tmp_path / "credentials"
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="latin-1")
        file.chmod(mode)
    agent.wait_for_log(KEPT)
    assert "listen.credentials_file" in agent.process.log
    assert stats_code(agent, callers.tokens["operator"]) is None
    token = callers.add("operator", Role.OPERATOR, "*")
    rewrite(agent, callers, tmp_path)
    assert stats_code(agent, token) is None


def test_new_certificates_hold_for_new_connections(
    agent: RemoteAgent, callers: Callers, tmp_path: Path
) -> None:
    certificates, new = tmp_path / "certificates", tmp_path / "new"
    make_certificates(new, "operator=DNS:operator.example")
    address = agent.admin_address

    def ask(tls: Tls) -> object:
        with AdminClient(Endpoint(address, "", tls)) as admin:
            return code_of(admin.get_stats)

    before, after = tls_of(certificates, "operator"), tls_of(new, "operator")
    old = Tls(*(Path(file).rename(tmp_path / Path(file).name) for file in vars(before).values()))
    with AdminClient(Endpoint(address, "", old)) as admin:
        admin.get_stats()
        (certificates / "agent.pem").write_bytes((new / "agent.pem").read_bytes())
        agent.wait_for_log(OLD_CERTIFICATES)  # its key is not there yet, nor the CA
        assert ask(old) is None
        for name in ("agent.key", "ca.pem"):
            (new / name).rename(certificates / name)
        agent.wait_for_log(NEW_CERTIFICATES)
        after = Tls(certificates / "ca.pem", after.cert, after.key)
        wait_until(lambda: ask(after) is None, 20)
        assert ask(old) is Code.UNAVAILABLE
        admin.get_stats()  # a connection that was there goes on


def test_a_broken_certificate_keeps_no_token_that_was_taken_back(
    agent: RemoteAgent, callers: Callers, tmp_path: Path
) -> None:
    old = callers.tokens["operator"]
    (tmp_path / "certificates" / "agent.key").write_text("no key")
    agent.wait_for_log(OLD_CERTIFICATES)
    callers.add("operator", Role.OPERATOR, "*")
    rewrite(agent, callers, tmp_path)
    assert stats_code(agent, old) is Code.UNAUTHENTICATED
    with AdminClient(agent.process.admin_address) as admin:
        [error] = admin.get_stats().listen_errors
    assert "listen.tls_key" in error


def test_a_certificate_that_expires_soon_is_a_trouble_until_it_is_replaced(
    agent: RemoteAgent, tmp_path: Path
) -> None:
    def replace(days: int) -> list[str]:
        made = tmp_path / f"{days} days"
        make_certificates(made, "--days", str(days))
        for file in made.glob("agent.*"):
            file.rename(tmp_path / "certificates" / file.name)
        agent.wait_for_log(NEW_CERTIFICATES, replaced)
        with AdminClient(agent.process.admin_address) as admin:
            return [each.text for each in of_stats(admin.get_stats()) if "cert" in each.text]

    replaced = 1
    [text] = replace(3)
    assert text.startswith("listen.tls_cert expires in ")
    replaced = 2
    assert replace(30) == []


def test_clients_go_on_when_their_connection_breaks(agent: RemoteAgent) -> None:
    go_on_after_a_break(agent, lambda: None)


def test_clients_show_the_certificates_of_now_when_they_connect_again(
    agent: RemoteAgent, tmp_path: Path
) -> None:
    def replace_all() -> None:
        make_certificates(tmp_path / "new", "worker=DNS:worker.example")
        for file in (tmp_path / "new").iterdir():
            file.rename(tmp_path / "certificates" / file.name)
        agent.wait_for_log(NEW_CERTIFICATES)

    go_on_after_a_break(agent, replace_all)


def go_on_after_a_break(agent: RemoteAgent, meanwhile: Callable[[], None]) -> None:
    """Both clients, whose connection breaks while `meanwhile` is done."""
    port = int(agent.address().rpartition(":")[2])
    with TcpProxy(port) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        tls = agent.tls("worker")
        blocks = np.stack(payloads(SPEC, HASHES))
        with (
            Client(address, tls=tls, timeout_seconds=10) as client,
            asyncio.Runner() as runner,
        ):
            asynchronous = AsyncClient(address, tls=tls, timeout_seconds=10)
            namespace, other = client.namespace(SPEC), asynchronous.namespace(SPEC)
            assert list(namespace.store(HASHES, blocks)) == [1, 1]
            assert runner.run(other.lookup(HASHES)).matched == 2
            proxy.cut_after(0)

            def is_cut() -> bool:
                try:
                    namespace.lookup(HASHES)
                except AgentUnavailableError:
                    return True
                return False

            wait_until(is_cut, 20)
            meanwhile()
            proxy.pass_on()
            wait_until(lambda: client.is_connected, 20)
            assert namespace.lookup(HASHES).matched == 2

            async def found() -> int:
                try:
                    return (await other.lookup(HASHES)).matched
                except AgentUnavailableError:
                    return 0

            wait_until(lambda: runner.run(found()) == 2, 20)
            runner.run(asynchronous.close())


def test_an_unknown_client_is_told_why_at_each_call(agent: RemoteAgent) -> None:
    tls = agent.tls("operator")
    with Client(agent.address(), tls=tls, token=make_token(), timeout_seconds=10) as client:
        assert not client.is_connected
        with pytest.raises(
            UnauthenticatedError, match=r"refused by the agent at .*: the token is unknown"
        ):
            client.namespace(SPEC).lookup(HASHES)

"""Who gets as far as a call, and with what: certificates, versions of TLS, tokens, connections."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from kvtier import Tls
from kvtier.access.role import Role
from kvtier.client.admin import AdminClient
from kvtier.client.endpoint import Endpoint
from kvtier.client.service import Service
from kvtier.core.status import Code
from kvtier.errors import AgentUnavailableError, ConfigError, UnauthenticatedError
from kvtier.sockets import WORKER_SOCKET
from kvtier.v1 import block_cache_pb2 as pb
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent, tls_of
from tests.access.calls import BLOCK_CACHE, Person, code_of, spec_message
from tests.faults.blocks import spec_of
from tests.faults.raw_worker import RawWorker
from tests.faults.waiting import wait_until

SPEC = spec_of("m", 4096, tenant="a")
LOOKUP = "kvtier.v1.BlockCache.LookupPrefix"


@pytest.fixture(scope="module")
def callers() -> Callers:
    made = Callers()
    made.add("worker", Role.WORKER, "*")
    made.add("other", Role.WORKER, "*")
    made.add("operator", Role.OPERATOR, "*")
    return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    names = ("worker", "other", "operator", "unnamed")
    make_certificates(directory, *(f"{name}=DNS:{name}.example" for name in names))
    return directory


@pytest.fixture(scope="module")
def agent(
    callers: Callers, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteAgent]:
    with remote_agent(tmp_path_factory.mktemp("agent"), callers, certificates) as running:
        yield running


def shake(agent: RemoteAgent, tls: ssl.SSLContext) -> bytes:
    """What a server of HTTP/2 says first; raises OSError, of which SSLError is one."""
    host, _, port = agent.address().rpartition(":")
    tls.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        tls.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        return wrapped.recv(9)


def context_of(
    certificates: Path, name: str | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(certificates / "ca.pem")
    made.maximum_version = newest
    if name is not None:
        made.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return made


def stats(agent: RemoteAgent, tls: Tls, token: str | None = None) -> None:
    with AdminClient(agent.admin_address, token=token, tls=tls) as admin:
        admin.get_stats()


# Certificates.


def test_with_a_certificate_and_tls_1_3_a_handshake_succeeds(
    agent: RemoteAgent, certificates: Path
) -> None:
    assert shake(agent, context_of(certificates, "worker"))


def test_tls_below_1_3_is_refused_in_the_handshake(agent: RemoteAgent, certificates: Path) -> None:
    with pytest.raises(ssl.SSLError):
        shake(agent, context_of(certificates, "worker", ssl.TLSVersion.TLSv1_2))


def test_without_a_certificate_nobody_gets_an_answer(
    agent: RemoteAgent, certificates: Path
) -> None:
    # In TLS 1.3 a client hears of it after its own handshake.
    with suppress(OSError):
        assert shake(agent, context_of(certificates, None)) == b""


def test_a_caller_of_another_ca_is_refused(
    agent: RemoteAgent, certificates: Path, callers: Callers, tmp_path: Path
) -> None:
    make_certificates(tmp_path, "operator=DNS:operator.example")
    stranger = tls_of(tmp_path, "operator")
    token = callers.tokens["operator"]
    mixed = Tls(certificates / "ca.pem", stranger.cert, stranger.key)
    with pytest.raises(AgentUnavailableError):
        stats(agent, mixed, token)
    stats(agent, tls_of(certificates, "operator"), token)


def test_an_agent_of_another_ca_is_not_believed(
    agent: RemoteAgent, certificates: Path, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    own = tls_of(certificates, "operator")
    with pytest.raises(AgentUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        stats(agent, Tls(tmp_path / "ca.pem", own.cert, own.key))


def test_an_expired_certificate_is_refused(
    agent: RemoteAgent, certificates: Path, callers: Callers
) -> None:
    make_certificates(certificates, "--days", "0", "late=DNS:operator.example")
    check = ["openssl", "x509", "-noout", "-checkend", "0", "-in", str(certificates / "late.pem")]
    wait_until(lambda: subprocess.run(check, capture_output=True, check=False).returncode, 10, 0.1)
    with pytest.raises(AgentUnavailableError):
        stats(agent, tls_of(certificates, "late"), callers.tokens["operator"])
    stats(agent, tls_of(certificates, "operator"), callers.tokens["operator"])


def test_a_certificate_that_nobody_named_is_not_enough(
    agent: RemoteAgent, certificates: Path, callers: Callers
) -> None:
    unnamed = tls_of(certificates, "unnamed")
    with pytest.raises(UnauthenticatedError, match="no name of the client's certificate"):
        stats(agent, unnamed)
    stats(agent, unnamed, callers.tokens["operator"])


def test_plain_text_gets_no_answer(agent: RemoteAgent, callers: Callers) -> None:
    endpoint = Endpoint(agent.admin_address, callers.tokens["operator"], "insecure")
    with AdminClient(endpoint) as admin, pytest.raises(AgentUnavailableError):
        admin.get_stats()


# Tokens.


@pytest.mark.parametrize("token", ["kvt_" + "A" * 43, "kvt_", "x" * 5000])
def test_a_wrong_token_is_refused_and_not_repeated(
    agent: RemoteAgent, certificates: Path, token: str
) -> None:
    # The certificate alone would do: a token counts for itself.
    with pytest.raises(UnauthenticatedError, match="the token is unknown") as caught:
        stats(agent, tls_of(certificates, "operator"), token)
    assert token not in str(caught.value)
    assert token not in agent.process.log
    agent.wait_for_log("a call from ipv4:127.0.0.1:")
    agent.wait_for_log("is refused: the token is unknown")


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic b3BlcmF0b3I6"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer a"), ("authorization", "Bearer b")),
    ],
)
def test_other_schemes_are_refused(
    agent: RemoteAgent, metadata: tuple[tuple[str, str], ...]
) -> None:
    service = Service(agent.endpoint("worker"), BLOCK_CACHE)
    try:
        with pytest.raises(UnauthenticatedError):
            service.call("GetCapabilities", pb.GetCapabilitiesRequest(), 10, metadata)
    finally:
        service.close()


# Sessions.


def people(agent: RemoteAgent, callers: Callers, *names: str) -> list[Person]:
    return [
        Person(agent.endpoint("unnamed", callers.tokens[name]), agent.process.admin_address)
        for name in names
    ]


def test_a_session_belongs_to_the_credential_and_the_connection_that_opened_it(
    agent: RemoteAgent, callers: Callers
) -> None:
    owner, again, other = people(agent, callers, "worker", "worker", "other")
    local = Person(agent.process.address, agent.process.admin_address)
    with owner, again, other, local:
        session, of_local = owner.open("a/m"), local.open("a/m")
        assert code_of(lambda: owner.call(LOOKUP, "a/m", session)) is None
        assert code_of(lambda: local.call(LOOKUP, "a/m", of_local)) is None
        assert code_of(lambda: again.call(LOOKUP, "a/m", session)) is Code.UNAUTHENTICATED
        assert code_of(lambda: other.call(LOOKUP, "a/m", session)) is Code.PERMISSION_DENIED
        assert code_of(lambda: local.call(LOOKUP, "a/m", session)) is Code.PERMISSION_DENIED
        assert code_of(lambda: owner.call(LOOKUP, "a/m", of_local)) is Code.PERMISSION_DENIED
        assert code_of(lambda: owner.call(LOOKUP, "a/m")) is Code.UNAUTHENTICATED
        assert code_of(lambda: owner.call(LOOKUP, "a/m", bytes(16))) is Code.ABORTED


def test_an_attach_token_is_of_no_use_over_the_network(
    agent: RemoteAgent, callers: Callers
) -> None:
    service = Service(agent.endpoint("worker"), BLOCK_CACHE)
    try:
        assert not service.call("GetCapabilities", pb.GetCapabilitiesRequest(), 10).attach_socket
        with RawWorker(agent.process.directory) as local:
            request = pb.OpenSessionRequest(namespace=spec_message("a/m"), attach_token=local.token)
            with pytest.raises(UnauthenticatedError, match="attach_token"):
                service.call("OpenSession", request, 10)
    finally:
        service.close()


def test_on_the_unix_socket_a_session_token_is_a_secret_that_ends_with_its_connection(
    agent: RemoteAgent,
) -> None:
    """gRPC does not say who calls there; memory is given to the connection that attached alone."""
    directory = agent.process.directory
    assert stat.S_IMODE((directory / WORKER_SOCKET).stat().st_mode) == 0o600
    with RawWorker(directory) as owner, RawWorker(directory) as other:
        tokens = [owner.open(SPEC) for _ in range(64)]
        assert {len(token) for token in (*tokens, owner.token, other.token)} == {16}
        # Of 64 random bytes some 57 differ; of counters and clocks hardly any.
        assert all(len(set(column)) > 32 for column in zip(*tokens, strict=True))
        session = tokens[0]
        nothing = pb.ReleaseLeasesRequest()
        other.call("ReleaseLeases", nothing, session)
        for bit in range(0, 128, 8):
            wrong = (int.from_bytes(session) ^ 1 << bit).to_bytes(16)
            with pytest.raises(grpc.RpcError, match="ABORTED"):
                other.call("ReleaseLeases", nothing, wrong)
        other.socket.send(
            json.dumps({"op": "extents", "session": session.hex(), "extents": [1]}).encode()
        )
        data, descriptors, _, _ = socket.recv_fds(other.socket, 1 << 16, 8)
        assert "belongs to another connection" in json.loads(data)["message"]
        assert not descriptors
        owner.detach()

        def is_over() -> bool:
            try:
                other.call("ReleaseLeases", nothing, session)
            except grpc.RpcError as error:
                return bool(error.code() is grpc.StatusCode.ABORTED)
            return False

        wait_until(is_over, 10, 0.01)


# What a client is told before it asks anybody.


def test_files_of_a_client_that_cannot_be_read_are_named(agent: RemoteAgent) -> None:
    with pytest.raises(ConfigError, match=r"cannot read /nonexistent/ca\.pem: No such file"):
        stats(agent, Tls("/nonexistent/ca.pem", "/nonexistent/cert", "/nonexistent/key"))


def test_files_of_a_client_that_do_not_go_together_are_named(
    agent: RemoteAgent, certificates: Path, tmp_path: Path
) -> None:
    own = tls_of(certificates, "operator")
    with pytest.raises(ConfigError, match=r"operator\.pem and .*agent\.key are no certificate and"):
        stats(agent, Tls(own.ca, own.cert, certificates / "agent.key"))
    (tmp_path / "ca.pem").write_text("")
    with pytest.raises(ConfigError, match=r"the CA .*/ca\.pem has no certificate in PEM"):
        stats(agent, Tls(tmp_path / "ca.pem", own.cert, own.key))

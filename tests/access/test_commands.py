"""Commands reach agents over TCP: by options, by the environment, by a context."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kvtier.access.role import Role
from kvtier.access.tokens import make_token, token_digest
from kvtier.cli.app import app
from kvtier.cli.exit import ExitCode
from kvtier.config.credentials_file import load_credentials
from kvtier.errors import AccessDeniedError, AgentUnavailableError, KvtierError
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent
from tests.unit.cli.command import kvtier

OPTIONS = {"--address", "--context", "--token-file", "--tls-ca", "--tls-cert", "--tls-key"}


@pytest.fixture(scope="module")
def callers() -> Callers:
    made = Callers()
    made.add("operator", Role.OPERATOR, "*")
    made.add("reader", Role.READER, "*")
    made.add("worker", Role.WORKER, "*")
    return made


@pytest.fixture(scope="module")
def agent(callers: Callers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteAgent]:
    directory = tmp_path_factory.mktemp("agent")
    make_certificates(directory / "certificates", "operator=DNS:operator.example", "any=DNS:x.y")
    for name, token in callers.tokens.items():
        (directory / "certificates" / f"{name}.token").write_text(f"# {name}\n{token}\n")
    with remote_agent(directory, callers, directory / "certificates") as running:
        yield running


def run(*arguments: object, **environ: object) -> str:
    """What a command prints; raises its KvtierError."""
    clean = {name: None for name in os.environ if name.startswith("KVTIER_")}
    words = {name: str(value) for name, value in environ.items()}
    done = CliRunner().invoke(app, list(map(str, arguments)), env={**clean, **words})
    if isinstance(done.exception, KvtierError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def files(agent: RemoteAgent, name: str) -> dict[str, Path]:
    assert agent.certificates is not None
    return {
        "ca": agent.certificates / "ca.pem",
        "cert": agent.certificates / f"{name}.pem",
        "key": agent.certificates / f"{name}.key",
    }


def tls_options(agent: RemoteAgent, name: str) -> list[object]:
    return [word for key, file in files(agent, name).items() for word in (f"--tls-{key}", file)]


def tls_variables(agent: RemoteAgent, name: str) -> dict[str, object]:
    return {f"KVTIER_TLS_{key.upper()}": file for key, file in files(agent, name).items()}


def token_file(agent: RemoteAgent, name: str) -> Path:
    assert agent.certificates is not None
    return agent.certificates / f"{name}.token"


def verbs(group: typer.Typer) -> Iterator[Any]:
    yield from group.registered_commands
    for each in group.registered_groups:
        assert each.typer_instance is not None
        yield from verbs(each.typer_instance)


def test_by_options(agent: RemoteAgent) -> None:
    where = ["--address", agent.admin_address]
    for how in (
        tls_options(agent, "operator"),
        [*tls_options(agent, "any"), "--token-file", token_file(agent, "reader")],
    ):
        assert json.loads(run("stats", "--json", *where, *how))["tiers"]


def test_who_may_not_record_replaces_no_recording(agent: RemoteAgent, tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text("precious")
    reader = [*tls_options(agent, "any"), "--token-file", token_file(agent, "reader")]
    with pytest.raises(AccessDeniedError):
        run("record", path, "--yes", "--address", agent.admin_address, *reader)
    assert path.read_text() == "precious"


def test_by_the_environment(agent: RemoteAgent) -> None:
    told = run(
        "tiers",
        KVTIER_ADMIN_ADDRESS=agent.admin_address,
        KVTIER_TOKEN_FILE=token_file(agent, "operator"),
        **tls_variables(agent, "any"),
    )
    assert "host" in told.lower()


def test_by_a_context_whose_files_are_beside_it(agent: RemoteAgent, tmp_path: Path) -> None:
    assert agent.certificates is not None
    contexts = agent.certificates / "contexts.yaml"
    contexts.write_text(
        f"one:\n  address: {agent.admin_address}\n  token_file: operator.token\n"
        "  tls_ca: ca.pem\n  tls_cert: any.pem\n  tls_key: any.key\n"
        "other: {address: '127.0.0.1:1', insecure: true}\n"
    )
    elsewhere = {"KVTIER_CONTEXTS": contexts, "KVTIER_ADMIN_ADDRESS": "127.0.0.1:1"}
    elsewhere["KVTIER_INSECURE"] = "1"  # what is not of the context does not count
    assert run("namespaces", "--context", "one", **elsewhere)
    assert run("sessions", KVTIER_CONTEXT="one", **elsewhere)
    with pytest.raises(KvtierError, match="no agent"):
        run("namespaces", "--context", "other", **elsewhere)
    assert run(
        "namespaces", "--context", "other", "--address", agent.process.admin_address, **elsewhere
    )
    with pytest.raises(KvtierError, match=r"no context 'three'; there are: one, other"):
        run("namespaces", "--context", "three", **elsewhere)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {}", "one.address is missing"),
        ("one: {adress: 'h:1'}", "unknown key one.adress; allowed are address, token_file"),
        ("one: {address: 5}", "one.address must be text"),
        ("one: {address: 'h:1', insecure: 1}", "one.insecure must be true or false"),
        ("one: h:1", "one is no mapping"),
        ("[one]", "it is no mapping"),
        ("one: {", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_context_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "contexts.yaml"
    file.write_text(text)
    with pytest.raises(KvtierError, match=message) as caught:
        run("stats", "--context", "one", KVTIER_CONTEXTS=file)
    assert str(file) in str(caught.value)


def test_half_of_tls_and_none_are_refused_by_name(agent: RemoteAgent, tmp_path: Path) -> None:
    where = ("stats", "--address", agent.admin_address)
    ca = files(agent, "any")["ca"]
    for arguments, message in (
        ([], "give the files for TLS"),
        (["--tls-ca", ca], r"with --tls-ca .* needs --tls-cert .*, --tls-key .* too"),
        (["--tls-ca", ca, "--insecure"], "insecure and --tls-ca .* contradict each other"),
        (["--insecure", "--token-file", tmp_path / "none"], "cannot read .*none: No such file"),
        (["--insecure", "--token-file", ca], "it must have one line, a token"),
    ):
        with pytest.raises(KvtierError, match=message):
            run(*where, *arguments)
    with pytest.raises(KvtierError, match=r"\(KVTIER_TLS_CA\) it needs .*\(KVTIER_TLS_KEY\) too"):
        run(*where, KVTIER_TLS_CA=ca)


def test_what_the_environment_says_wrongly_is_named(agent: RemoteAgent) -> None:
    with pytest.raises(KvtierError, match="KVTIER_INSECURE is 'true'; it must be 1, 0 or empty"):
        run("stats", "--address", agent.admin_address, KVTIER_INSECURE="true")


def test_refusals_say_what_is_wrong(agent: RemoteAgent, tmp_path: Path) -> None:
    where = ("stats", "--address", agent.admin_address)
    unknown = tmp_path / "unknown.token"
    unknown.write_text(make_token())
    done = kvtier(*where, *map(str, tls_options(agent, "any")), "--token-file", str(unknown))
    assert (done.returncode, "the token is unknown" in done.stderr) == (ExitCode.FAILED, True)
    worker = ["--token-file", token_file(agent, "worker")]
    with pytest.raises(KvtierError, match="GetStats is for role operator or reader"):
        run(*where, *tls_options(agent, "any"), *worker)
    reader = ["--token-file", token_file(agent, "reader")]
    with pytest.raises(KvtierError, match="FlushTier is for role operator"):
        run("flush", *where[1:], *tls_options(agent, "any"), *reader)
    agent.wait_for_log("FlushTier by reader, from ipv4:127.0.0.1:")
    make_certificates(tmp_path / "stranger", "any=DNS:x.y")
    done = kvtier(*where, "--tls-ca", str(tmp_path / "stranger" / "ca.pem"),
                  *map(str, tls_options(agent, "any")[2:]))  # fmt: skip
    assert done.returncode == ExitCode.UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    ca = ["--tls-ca", files(agent, "any")["ca"]]
    stranger = [
        word
        for key, name in (("cert", "any.pem"), ("key", "any.key"))
        for word in (f"--tls-{key}", tmp_path / "stranger" / name)
    ]
    with pytest.raises(AgentUnavailableError, match="no agent lets us in"):
        run(*where, *ca, *stranger)


def test_a_check_of_the_configuration_looks_at_the_files(
    agent: RemoteAgent, tmp_path: Path
) -> None:
    settings = [f"{name}={value}" for name, value in agent.process.settings.items()]
    check = ("config", "check", *(word for each in settings for word in ("--set", each)))
    assert kvtier(*check).returncode == ExitCode.OK
    key = tmp_path / "other.key"
    key.write_text("no key")
    key.chmod(0o600)
    for change, message in (
        (f"listen.tls_key={key}", "are no certificate and its key"),
        (f"listen.credentials_file={tmp_path / 'none'}", "listen.credentials_file: cannot read"),
    ):
        done = kvtier(*check, "--set", change)
        assert (done.returncode, message in done.stderr) == (ExitCode.USAGE, True), done.stderr


def test_an_address_in_use_ends_an_agent_with_its_name(agent: RemoteAgent, tmp_path: Path) -> None:
    settings = {**agent.process.settings, "socket_dir": str(tmp_path / "other")}
    settings |= {"listen.address": "127.0.0.1:0", "listen.admin_address": agent.admin_address}
    words = [word for each in settings.items() for word in ("--set", "=".join(map(str, each)))]
    done = kvtier("agent", *words)
    assert done.returncode == ExitCode.USAGE
    said = f"kvtier: listen.admin_address: cannot listen on {agent.admin_address}: it is in use"
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "never awaited" not in done.stderr


def test_the_workers_address_is_told_from_the_operators(agent: RemoteAgent) -> None:
    with pytest.raises(KvtierError, match=r"served there.*listen\.admin_address"):
        run("stats", "--address", agent.address(), *tls_options(agent, "operator"))


def test_every_verb_that_has_an_address_has_all_options() -> None:
    found = 0
    for command in verbs(app):
        parameters = inspect.signature(command.callback).parameters
        if "address" in parameters:
            found += 1
            assert {"context", "token_file", "tls_ca", "tls_cert", "tls_key"} <= set(parameters)
    assert found >= 17
    told = kvtier("tier", "set", "--help").stdout
    assert all(option in told for option in OPTIONS)


def test_a_token_is_made_with_the_line_that_makes_it_known(tmp_path: Path) -> None:
    out, credentials = tmp_path / "ci.token", tmp_path / "credentials"
    line = run(
        "token", "ci", "--role", "worker", "--namespaces", "ci/*,a/m", "--expires", "1d",
        "--out", out,
    )  # fmt: skip
    token = out.read_text().strip()
    assert token not in line
    assert out.stat().st_mode & 0o777 == 0o600
    credentials.touch(mode=0o600)
    credentials.write_text(line)
    [(proof, credential)] = load_credentials(credentials).items()
    assert proof.value == token_digest(token).hex()
    assert (credential.name, credential.role) == ("ci", Role.WORKER)
    assert credential.scope.patterns == {"ci/*", "a/m"}
    with pytest.raises(KvtierError, match="File exists"):
        run("token", "ci", "--role", "worker", "--namespaces", "*", "--out", out)
    made = json.loads(run("token", "x", "--role", "reader", "--namespaces", "*", "--json"))
    assert token_digest(made["token"]).hex() in made["line"]
    assert "until=" not in made["line"]
    for wrong in (("a b", "*"), ("a", "A/b"), ("a", "")):
        with pytest.raises(KvtierError):
            run("token", wrong[0], "--role", "reader", "--namespaces", wrong[1])

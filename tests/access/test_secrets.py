"""What is secret is in no output: marked secrets are planted, and all output is searched."""

from __future__ import annotations

import base64
import logging
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from kvtier import Client
from kvtier.access.role import Role
from kvtier.access.tokens import make_token, token_digest
from kvtier.client.admin import AdminClient
from kvtier.errors import KvtierError
from kvtier.hashing import block_hashes
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent
from tests.access.test_commands import run, tls_options
from tests.faults.blocks import spec_of
from tests.unit.cli.command import kvtier

MARK = "Marked0Secret"


@dataclass
class Planted:
    """Secrets by what they are."""

    found: dict[str, bytes] = field(default_factory=dict)

    def plant(self, what: str) -> str:
        text = f"{MARK}{secrets.token_hex(12)}"
        self.found[what] = text.encode()
        return text

    def in_output(self, output: str) -> list[str]:
        """What of them is there, as it is, in hexadecimal or in base64."""
        seen = output.lower()
        return [
            what
            for what, secret in self.found.items()
            for form in (
                secret.decode("latin-1"),
                secret.hex(),
                base64.b64encode(secret).decode().rstrip("="),
                base64.urlsafe_b64encode(secret).decode().rstrip("="),
            )
            if form.lower() in seen
        ]


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def callers(planted: Planted) -> Callers:
    made = Callers()
    made.add("worker", Role.WORKER, "a/*")
    made.add("operator", Role.OPERATOR, "*")
    for name, token in made.tokens.items():
        planted.found[f"token of {name}"] = token.encode()
        planted.found[f"hash of the token of {name}"] = token_digest(token)
    return made


@pytest.fixture(scope="module")
def directory(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("secrets")
    make_certificates(made / "certificates", "worker=DNS:worker.example", "any=DNS:x.y")
    for file in (made / "certificates").glob("*.key"):
        planted.found[f"key {file.name}"] = file.read_text().splitlines()[1].encode()
    sealing = made / "sealing"
    sealing.touch(mode=0o600)
    key = secrets.token_bytes(32)
    planted.found["sealing key"] = key
    sealing.write_text(f"1 {key.hex()} current\n")
    return made


@pytest.fixture(scope="module")
def agent(planted: Planted, callers: Callers, directory: Path) -> Iterator[RemoteAgent]:
    """With a cluster that does not answer, so that there is something to complain about."""
    settings = {
        "tiers.cluster.url": f"redis://user:{planted.plant('password in a URL')}@127.0.0.1:1",
        "tiers.cluster.keys_file": directory / "sealing",
    }
    with remote_agent(directory, callers, directory / "certificates", settings) as running:
        yield running


def test_nothing_secret_is_in_any_output(
    agent: RemoteAgent,
    planted: Planted,
    callers: Callers,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    output = []

    def told(*arguments: object) -> None:
        try:
            output.append(run(*arguments))
        except KvtierError as error:
            output.append(str(error))

    local = ("--address", agent.process.admin_address)

    # A prompt's salt and a block's bytes.
    salt = planted.plant("salt")
    block = (planted.plant("bytes of a block").encode() * 200)[:4096]
    planted.found["tokens of a prompt"] = b"41424344, 41424345, 41424346"
    tokens = [41424344, 41424345, 41424346] * 16
    hashes = block_hashes(tokens, block_tokens=16, extra=salt.encode())
    operator = callers.tokens["operator"]
    with Client(
        agent.address(), tls=agent.tls("worker"), token=callers.tokens["worker"], timeout_seconds=10
    ) as client:
        namespace = client.namespace(spec_of("m", 4096, tenant="a"))
        namespace.store(hashes, np.stack([np.frombuffer(block, np.uint8)] * len(hashes)))
        assert namespace.lookup(hashes).matched == len(hashes)
        out = np.zeros((len(hashes), 4096), np.uint8)
        namespace.load_into(hashes, out)
        assert bytes(out[0]) == block
        output.append(f"{client!r} {namespace!r} {vars(client)!r}")

        endpoint = agent.endpoint("any", operator, "admin_address")
        output.append(repr(endpoint))
        with AdminClient(endpoint) as admin:
            output += [str(admin.get_stats()), str(admin.list_sessions())]
            output.append(str(admin.create_pin("a/m", hashes, 60)))
        for verb in ("stats", "tiers", "namespaces", "sessions", "pins", "flush"):
            told(verb, *local)
            told(verb, *local, "--json")
        told("cluster", "nodes", *local)
        told("explain", "a/m", *(each.hex() for each in hashes), *local, "--json")

    # Wrong tokens, and the client's own errors.
    for wrong in (make_token(), f"kvt_{planted.plant('no token')}", planted.plant("x") + "\n"):
        planted.found[f"wrong token {len(planted.found)}"] = wrong.strip().encode()
        file = directory / "wrong.token"
        file.write_text(wrong)
        told("stats", "--address", agent.admin_address, "--token-file", file,
             *tls_options(agent, "any"))  # fmt: skip
        with (
            suppress(KvtierError),
            AdminClient(agent.admin_address, token=wrong, tls=agent.tls("any")) as admin,
        ):
            admin.get_stats()

    # A credentials file with tokens where hashes belong, while the agent runs.
    (directory / "credentials").write_text(f"operator operator * {operator}\n")
    agent.wait_for_log("read before still hold")

    # The configuration.
    settings = [word for key, value in agent.process.settings.items()
                for word in ("--set", f"{key}={value}")]  # fmt: skip
    for command in (("show",), ("show", "--json"), ("check",)):
        told("config", *command, *settings)
    wrong_url = f"redis//user:{planted.plant('password in a wrong URL')}@h:1"
    told("config", "check", *settings, "--set", f"tiers.cluster.url={wrong_url}")
    broken = directory / "credentials"
    for named, changes in (
        ("listen.credentials_file", [f"listen.credentials_file={broken}"]),
        (
            "tiers.cluster.keys_file",
            [
                "listen.address=null",
                "listen.admin_address=null",
                f"tiers.cluster.keys_file={broken}",
            ],
        ),
    ):
        changed = [word for each in changes for word in ("--set", each)]
        done = kvtier("agent", *settings, *changed, "--set", f"socket_dir={directory / 'other'}")
        assert named in done.stderr
        output += [done.stdout, done.stderr]

    output += [agent.process.log, caplog.text]
    assert planted.in_output("\n".join(output)) == []


@pytest.mark.parametrize("form", [str, lambda text: text.encode().hex(), lambda text: text.upper()])
def test_a_secret_would_be_found(form: object) -> None:
    made = Planted()
    text = made.plant("one")
    assert callable(form)
    assert made.in_output(f"... {form(text)} ...") == ["one"]

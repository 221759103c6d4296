"""Agents that listen on TCP, and who calls them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from kvtier import Tls
from kvtier.access.credential import Credential
from kvtier.access.proof import Proof, ProofKind
from kvtier.access.role import Role
from kvtier.access.scope import Scope
from kvtier.access.tokens import make_token, token_digest
from kvtier.client.endpoint import Endpoint
from kvtier.config.credentials_file import format_line
from kvtier.testing import AgentProcess
from tests.faults.waiting import wait_until

REPOSITORY: Final = Path(__file__).parents[2]
MAKE_CERTIFICATES: Final = REPOSITORY / "examples" / "tls" / "make_certificates.sh"


def make_certificates(directory: Path, *arguments: str) -> None:
    subprocess.run([MAKE_CERTIFICATES, directory, *arguments], check=True, capture_output=True)


def tls_of(directory: Path, name: str) -> Tls:
    return Tls(directory / "ca.pem", directory / f"{name}.pem", directory / f"{name}.key")


@dataclass
class Callers:
    """Credentials by name: each has a token, and a certificate for NAME.example may be made."""

    credentials: dict[str, Credential] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, role: Role, *patterns: str, expires_at: float | None = None) -> str:
        """Its token."""
        self.credentials[name] = Credential(name, role, Scope(frozenset(patterns)), expires_at)
        self.tokens[name] = make_token()
        return self.tokens[name]

    def write(self, path: Path) -> None:
        """As a credentials file."""
        lines = []
        for name, credential in self.credentials.items():
            digest = token_digest(self.tokens[name]).hex()
            lines.append(format_line(Proof(ProofKind.TOKEN, digest), credential))
            lines.append(format_line(Proof(ProofKind.DNS, f"{name}.example"), credential))
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text("\n".join(lines) + "\n")
        new.rename(path)


@dataclass(frozen=True)
class RemoteAgent:
    """An agent with both listeners."""

    process: AgentProcess
    certificates: Path | None

    def address(self, field_name: Literal["address", "admin_address"] = "address") -> str:
        """HOST:PORT, as its log tells it; of its last start."""
        found = re.findall(rf"listen\.{field_name}: serving \w+ on ([0-9.]+:\d+)", self.process.log)
        return str(found[-1])

    @property
    def admin_address(self) -> str:
        return self.address("admin_address")

    def tls(self, name: str) -> Tls | Literal["insecure"]:
        return "insecure" if self.certificates is None else tls_of(self.certificates, name)

    def endpoint(
        self,
        name: str,
        token: str = "",
        field_name: Literal["address", "admin_address"] = "address",
    ) -> Endpoint:
        """With the certificate of that name, if there is TLS."""
        return Endpoint(self.address(field_name), token, self.tls(name))

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.process.log.count(text) >= count, 20)


@contextmanager
def remote_agent(
    directory: Path,
    callers: Callers,
    certificates: Path | None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[RemoteAgent]:
    """Without certificates it is insecure."""
    credentials_file = directory / "credentials"
    callers.write(credentials_file)
    chosen: dict[str, object] = {
        "tiers.host.capacity": "64MiB",
        "log.level": "debug",
        "listen.address": "127.0.0.1:0",
        "listen.admin_address": "127.0.0.1:0",
        "listen.credentials_file": credentials_file,
        "listen.reload_interval": 0.1,
    }
    if certificates is None:
        chosen["listen.insecure"] = "true"
    else:
        chosen["listen.tls_cert"] = certificates / "agent.pem"
        chosen["listen.tls_key"] = certificates / "agent.key"
        chosen["listen.tls_client_ca"] = certificates / "ca.pem"
    sockets = directory / "sockets"
    sockets.mkdir(mode=0o700)
    with AgentProcess(sockets, {**chosen, **(settings or {})}) as process:
        yield RemoteAgent(process, certificates)
        assert "Traceback" not in process.log, process.log[-3000:]

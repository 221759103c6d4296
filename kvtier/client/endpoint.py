"""Where an agent is, and what it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from kvtier.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    import grpc

_TCP: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_MOST_PORT: Final = 65535


@dataclass(frozen=True)
class Tls:
    """Files in PEM: the CA of agents, and the caller's own certificate with its key."""

    ca: Path | str
    cert: Path | str
    key: Path | str

    def read(self) -> tuple[bytes, bytes, bytes]:
        """CA, certificate, key. Raises ConfigError for what cannot be read or used."""
        ca, cert, key = (_read(Path(path)) for path in (self.ca, self.cert, self.key))
        self._check()
        return ca, cert, key

    def _check(self) -> None:
        """gRPC would log much, and say only that a handshake failed."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, cert, key = (Path(each).expanduser() for each in (self.ca, self.cert, self.key))
        try:
            context.load_verify_locations(ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"the CA {self.ca} has no certificate in PEM") from error
        try:
            context.load_cert_chain(cert, key, password=lambda: "")  # nobody is asked for one
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{self.cert} and {self.key} are no certificate and its key, in PEM and without a "
                "password"
            ) from error


@dataclass(frozen=True)
class Endpoint:
    """A gRPC target with what its agent wants to see. `tls` is "insecure" for none, in so many
    words. Raises InvalidRequestError for what does not fit together.
    """

    target: str
    token: str = field(default="", repr=False)
    tls: Tls | Literal["insecure"] | None = None

    def __post_init__(self) -> None:
        # What is neither would mean no TLS, in the clear.
        if self.tls not in (None, "insecure") and not isinstance(self.tls, Tls):
            raise InvalidRequestError(
                f"tls is a {type(self.tls).__name__}; it must be kvtier.Tls(ca, cert, key), or "
                "'insecure'"
            )
        match = _TCP.fullmatch(self.target)
        if self.is_local:
            if self.token or self.tls:
                raise InvalidRequestError(
                    f"address is {self.target}: a Unix socket takes neither token nor TLS"
                )
        elif match is None or int(match[1]) > _MOST_PORT:
            raise InvalidRequestError(
                f"address is {self.target!r}; it must be unix:PATH, the path of the agent's "
                "socket, or HOST:PORT"
            )
        elif self.tls is None:
            raise InvalidRequestError(
                f"address is {self.target}: over TCP, give the files for TLS (ca, cert and key), "
                "or say insecure"
            )
        if not self.token.isascii() or not self.token.isprintable():
            raise InvalidRequestError("the token has characters that no token has")

    @property
    def is_local(self) -> bool:
        return self.target.startswith("unix:") and self.target != "unix:"

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Of each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None without TLS. Files are read now; raises ConfigError."""
        if not isinstance(self.tls, Tls):
            return None
        import grpc

        ca, cert, key = self.tls.read()
        return grpc.ssl_channel_credentials(ca, key, cert)


def endpoint_of(
    address: str,
    token: str | None,
    tls: Tls | Literal["insecure"] | None,
    environ: Mapping[str, str],
) -> Endpoint:
    """What is not given for a TCP address comes from `KVTIER_TOKEN_FILE`, `KVTIER_TLS_CA`,
    `KVTIER_TLS_CERT` and `KVTIER_TLS_KEY`, or `KVTIER_INSECURE`, each on its own.

    Raises ConfigError for a token that cannot be read, and for half of TLS.
    """
    target = f"unix:{address}" if address.startswith("/") else address
    if target.startswith("unix:"):
        return Endpoint(target, token or "", tls)
    if token is None and (file := environ.get("KVTIER_TOKEN_FILE")):
        token = read_token(Path(file))
    return Endpoint(target, token or "", tls or tls_of(environ))


def tls_of(environ: Mapping[str, str]) -> Tls | Literal["insecure"] | None:
    """What the environment says. Raises ConfigError for half of it, or a contradiction."""
    names = "KVTIER_TLS_CA", "KVTIER_TLS_CERT", "KVTIER_TLS_KEY"
    files = {name: environ.get(name) for name in names}
    return tls_from(files, is_insecure=is_insecure(environ))


def is_insecure(environ: Mapping[str, str]) -> bool:
    """What `KVTIER_INSECURE` says. Raises ConfigError."""
    said = environ.get("KVTIER_INSECURE", "")
    if said not in ("", "0", "1"):
        raise ConfigError(f"KVTIER_INSECURE is {said!r}; it must be 1, 0 or empty")
    return said == "1"


def tls_from(
    files: Mapping[str, str | Path | None], *, is_insecure: bool
) -> Tls | Literal["insecure"] | None:
    """CA, certificate and key, by the names of their settings. Raises ConfigError."""
    given = {name: file for name, file in files.items() if file}
    if is_insecure and given:
        raise ConfigError(f"insecure and {', '.join(given)} contradict each other")
    if is_insecure:
        return "insecure"
    if not given:
        return None
    if len(given) < len(files):
        missing = ", ".join(name for name in files if name not in given)
        raise ConfigError(f"with {', '.join(given)} it needs {missing} too")
    return Tls(*given.values())


def read_token(path: Path) -> str:
    """The first line that is not a comment. Raises ConfigError, which repeats nothing of it."""
    lines = _read(path).decode("utf-8", "replace").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(found) != 1:
        raise ConfigError(f"{path}: it must have one line, a token")
    return found[0]


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error

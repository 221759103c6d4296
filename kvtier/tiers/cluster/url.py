"""Where the cluster is: `tiers.cluster.url`, and what belongs to it."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from kvtier.errors import ConfigError

_FIELD = "tiers.cluster.url"
_FORMS = (
    "redis://HOST:PORT[?db=N], rediss://HOST:PORT, unix:///PATH, "
    "redis+sentinel://HOST:PORT,HOST:PORT/MASTER, redis+cluster://HOST:PORT,HOST:PORT, embedded"
)
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_HIDDEN = "***"


class Deployment(Enum):
    """What kvtier finds at the URL."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    EMBEDDED = "embedded"  #: a private server, which the agent starts


class Transport(Enum):
    """How it is spoken to."""

    TCP = "tcp"
    TLS = "tls"
    UNIX = "unix"


_SCHEMES = {
    "redis": (Deployment.SERVER, Transport.TCP),
    "rediss": (Deployment.SERVER, Transport.TLS),
    "unix": (Deployment.SERVER, Transport.UNIX),
    "redis+sentinel": (Deployment.SENTINEL, Transport.TCP),
    "rediss+sentinel": (Deployment.SENTINEL, Transport.TLS),
    "redis+cluster": (Deployment.CLUSTER, Transport.TCP),
    "rediss+cluster": (Deployment.CLUSTER, Transport.TLS),
}


@dataclass(frozen=True)
class Address:
    """Of a server, a Sentinel or a node to ask for the others."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """Empty strings for none."""

    user: str = ""
    password: str = field(default="", repr=False)
    #: Of the Sentinels themselves; they are asked without credentials if it is empty.
    sentinel_password: str = field(default="", repr=False)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. Without `ca_file` the system's certificates count, with it only those in it."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Checks the server's certificate and its host name. Raises ConfigError."""
        return _context(self)


@dataclass(frozen=True)
class ClusterUrl:
    """A URL taken apart. Printing it shows no password; neither does `redacted`."""

    deployment: Deployment
    transport: Transport
    addresses: tuple[Address, ...] = ()
    path: str = ""
    master: str = ""
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    def redacted(self) -> str:
        """The URL, with stars for the password."""
        if self.deployment is Deployment.EMBEDDED:
            return "embedded"
        scheme = next(
            each for each, kinds in _SCHEMES.items() if kinds == (self.deployment, self.transport)
        )
        who = self.user + (f":{_HIDDEN}" if self.password else "")
        where = self.path or ",".join(str(each) for each in self.addresses)
        tail = f"/{self.master}" if self.master else ""
        query = f"?db={self.db}" if self.db else ""
        return f"{scheme}://{who}{'@' if who else ''}{where}{tail}{query}"


def parse_url(text: str) -> ClusterUrl:
    """Raises ConfigError, whose message names the field and never shows a password."""
    if text == "embedded":
        return ClusterUrl(Deployment.EMBEDDED, Transport.UNIX)
    try:
        parts = urlsplit(text)
    except ValueError:  # its message may repeat the password
        raise _wrong(f"allowed are {_FORMS}") from None
    if parts.scheme not in _SCHEMES:
        raise _wrong(f"allowed are {_FORMS}")
    deployment, transport = _SCHEMES[parts.scheme]
    who, _, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    path = unquote(parts.path)
    if transport is Transport.UNIX:
        if where or not path.startswith("/") or path == "/":
            raise _wrong("a socket is unix:// and an absolute path: unix:///run/redis.sock")
        addresses: tuple[Address, ...] = ()
        master = ""
    else:
        default = _SENTINEL_PORT if deployment is Deployment.SENTINEL else _REDIS_PORT
        addresses = tuple(_address(each, default) for each in where.split(","))
        path, master = "", _master(deployment, path)
    if deployment is Deployment.SERVER and len(addresses) > 1:
        raise _wrong("several addresses are for redis+sentinel:// and redis+cluster://")
    db = _db(parts, deployment)
    return ClusterUrl(
        deployment, transport, addresses, path, master, db, unquote(user), unquote(password)
    )


def _address(text: str, default_port: int) -> Address:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/\s]+))(?::(\d{1,5}))?", text)
    if found is None:
        raise _wrong("an address is HOST or HOST:PORT, with [] around an IPv6 address")
    port = int(found[3] or default_port)
    if not 0 < port < 1 << 16:
        raise _wrong(f"port {port} does not exist")
    return Address(found[1] or found[2], port)


def _master(deployment: Deployment, path: str) -> str:
    """The name of what the Sentinels watch."""
    name = path.strip("/")
    if deployment is Deployment.SENTINEL:
        if not name or "/" in name:
            raise _wrong("the name of the master is missing: redis+sentinel://HOST:PORT/MASTER")
        return name
    if name:
        raise _wrong("a database is chosen with ?db=N; there is no other path")
    return ""


def _db(parts: SplitResult, deployment: Deployment) -> int:
    if parts.fragment:
        raise _wrong("a # in a user or password is written %23")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if unknown := [name for name, _ in query if name != "db"]:
        raise _wrong(f"there is no parameter {unknown[0]!r}; allowed is db")
    value = dict(query).get("db", "0")
    if not re.fullmatch(r"[0-9]{1,5}", value):
        raise _wrong("db is a number from 0 on")
    if int(value) and deployment is Deployment.CLUSTER:
        raise _wrong("a cluster has no databases but 0")
    return int(value)


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"{_FIELD}: {what}")


def _context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=None if files.ca_file is None else str(files.ca_file)
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tiers.cluster.tls_ca {files.ca_file}: {error}") from error
    if files.cert_file is None and files.key_file is not None:
        raise ConfigError("tiers.cluster.tls_key needs tiers.cluster.tls_cert")
    if files.cert_file is not None:
        try:
            # Without a function for the passphrase OpenSSL would ask on the terminal.
            context.load_cert_chain(files.cert_file, files.key_file, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tiers.cluster.tls_cert {files.cert_file}: {error}") from error
    return context

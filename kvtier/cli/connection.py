"""A connection to an agent's admin API whose errors tell an operator what to do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from kvtier.cli.remote import endpoint
from kvtier.errors import (
    AgentUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    KvtierError,
)
from kvtier.sockets import ATTACH_SOCKET, WORKER_SOCKET

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient


_CREDENTIALS: Final = struct.Struct("3i")


class Door(Enum):
    """What stands at a socket's path."""

    OPEN = "somebody listens"
    DENIED = "there may be a socket that this user must not connect to"
    MISSING = "nobody listens"


@contextmanager
def admin(address: str, timeout_seconds: float) -> Iterator[AdminClient]:
    """An AdminClient, closed at the end.

    An agent that answers that it is unable is told from one that does not answer: the former is
    a KvtierError with what it says.
    """
    path = None if is_tcp(address) else socket_path(address)
    target = endpoint(address) if path is None else f"unix:{path}"
    from kvtier.client.admin import AdminClient  # and gRPC, which `endpoint` keeps from talking

    try:
        with AdminClient(target, timeout_seconds=timeout_seconds) as client:
            yield client
    except AgentUnavailableError as error:
        if path is None:
            with AdminClient(target, timeout_seconds=timeout_seconds) as client:
                _explain_remote(client, address, error)
        _explain_local(path, error)
    except DeadlineExceededError as error:
        target = address if path is None else target
        raise DeadlineExceededError(
            f"the agent at {target} did not answer within {timeout_seconds:g} s: "
            "see whether it hangs, or raise --timeout"
        ) from error


def _explain_local(path: Path, error: AgentUnavailableError) -> NoReturn:
    match door(path):
        case Door.OPEN:
            raise KvtierError(str(error)) from error
        case Door.DENIED:
            raise AgentUnavailableError(
                f"unix:{path}: permission denied; it is for the agent's own user"
            ) from error
        case Door.MISSING:
            raise AgentUnavailableError(
                f"no agent at unix:{path}: start one with `kvtier agent`, "
                "or name its socket with --address"
            ) from error


def _explain_remote(client: AdminClient, address: str, error: AgentUnavailableError) -> NoReturn:
    """An agent that tells probes how it is said itself that it is unable."""
    try:
        client.is_ready()
    except KvtierError:
        raise AgentUnavailableError(
            f"no agent lets us in at {address}: {error}. See whether it has "
            "listen.admin_address, and whether --tls-ca and --tls-cert are of the CAs that it and "
            "this command know"
        ) from error
    raise KvtierError(str(error)) from error


def is_tcp(address: str) -> bool:
    """Whether it is HOST:PORT."""
    return not address.startswith(("/", "unix:")) and address.rpartition(":")[2].isdecimal()


def socket_path(address: str) -> Path:
    """The socket of `unix:PATH`, `unix:///PATH` or an absolute path.

    Raises InvalidRequestError for other addresses, and for the sockets of workers.
    """
    text = address if address.startswith("/") else _after_scheme(address)
    if not text:
        raise InvalidRequestError(f"--address {address!r}: it must be unix:PATH or HOST:PORT")
    path = Path(text)
    if path.name in (WORKER_SOCKET, ATTACH_SOCKET):
        raise InvalidRequestError(
            f"--address {address}: that is a workers' socket; this command needs admin.sock"
        )
    return path


def _after_scheme(address: str) -> str:
    """Empty if it is not a Unix socket's."""
    scheme, _, path = address.partition(":")
    if scheme != "unix" or (path.startswith("//") and not path.startswith("///")):
        return ""
    return path.removeprefix("//") if path.startswith("///") else path


def listener_pid(address: str) -> int | None:
    """Of the agent behind a socket, if there is one and this process may see it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(socket_path(address)))
        except (OSError, InvalidRequestError):
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid or None  # 0: of a container that is not this one


def door(path: Path) -> Door:
    """Tries it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except PermissionError:
            return Door.DENIED
        except OSError:
            return Door.MISSING
    return Door.OPEN

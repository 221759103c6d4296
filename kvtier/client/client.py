"""A worker's connection to its node's agent, kept alive."""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, get_args

from kvtier.client.connection import Connection, socket_path
from kvtier.client.device import WorkerDevice
from kvtier.client.endpoint import Tls, endpoint_of
from kvtier.client.namespace import Namespace
from kvtier.client.stream_connection import StreamConnection
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import (
    AccessDeniedError,
    AgentUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    KvtierError,
    NoSharedMemoryError,
    SessionLostError,
)
from kvtier.sockets import WORKER_SOCKET, default_address

log = logging.getLogger(__name__)

Transport = Literal["auto", "memory", "stream"]

_CLIENT_ID_BYTES = 16
_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 1.0
#: After these the connection is suspended: it may be gone, and the next call would wait too.
_SUSPENDING = (AgentUnavailableError, DeadlineExceededError, SessionLostError)


class Client:
    """Attaches to an agent and attaches again when it comes back. Thread-safe.

    An agent that is missing, dying or hung costs one call one timeout. From then on calls fail at
    once with AgentUnavailableError, while a thread of the client's own asks for the agent with
    growing, jittered delays of at most 1 s; it ends when the agent answers. Making a client fails
    for a bad address only: what else is wrong, calls say.

    `transport` says how bytes of blocks travel: by "memory" shared with the agent, by "stream" in
    gRPC, or "auto": memory, and streams where this process cannot attach, because it is another
    user's or in another container. What `load` and `reserve` give are copies then.

    `device` is the one that the worker computes on, by torch's name: see `use_device`.

    `address` is `unix:` and the path of worker.sock (default: `KVTIER_ADDRESS`, else where an agent
    of this user listens), or HOST:PORT of an agent on another node, by streams. Then `tls` names
    files, or is "insecure" for none, and `token` is a bearer token, where the certificate is not
    enough; without them, `KVTIER_TLS_CA`, `KVTIER_TLS_CERT`, `KVTIER_TLS_KEY`, `KVTIER_INSECURE=1`
    and `KVTIER_TOKEN_FILE` count. `worker` is a name for logs. A client does not survive a fork.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        worker: str = "",
        timeout_seconds: float = 1.0,
        transport: Transport = "auto",
        device: Any = None,
        token: str | None = None,
        tls: Tls | Literal["insecure"] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        if address is None:
            address = environ.get("KVTIER_ADDRESS") or default_address(environ, WORKER_SOCKET)
        self._endpoint = endpoint_of(address, token, tls, environ)
        self.address = self._endpoint.target
        if transport not in get_args(Transport):
            raise InvalidRequestError(
                f"transport is {transport!r}; it must be one of {', '.join(get_args(Transport))}"
            )
        if transport == "memory" and not self._endpoint.is_local:
            raise InvalidRequestError(
                f"transport is 'memory' and address is {self.address}: only an agent of this node "
                "shares memory, over its Unix socket"
            )
        self._transport = transport if self._endpoint.is_local else "stream"
        self.device = WorkerDevice(device) if device is not None else None
        self.worker = worker or f"pid {os.getpid()}"
        self.timeout_seconds = timeout_seconds
        self._client_id = secrets.token_bytes(_CLIENT_ID_BYTES)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._restorer: threading.Thread | None = None
        self._connection: Connection | StreamConnection | None = None
        self._suspended: Connection | StreamConnection | None = None
        self._failure: type[Exception] = AgentUnavailableError
        self._trouble = f"no agent at {self.address}: not connected yet"
        try:
            self._connection = self._connect()
        except KvtierError as error:
            self._suspend(None, error)

    def namespace(self, spec: NamespaceSpec) -> Namespace:
        """The verbs on one namespace; it is registered with the agent at the first call."""
        return Namespace(self, spec)

    def use_device(self, device: Any) -> None:
        """Says that this worker computes on a device, before its first load.

        The agent's memory is then registered for fast copies to it. If the agent has a GPU tier on
        the same device, loads give tensors there for the blocks that it has on it. `cpu` is for an
        emulated tier. Needs torch, imported by the caller. Raises InvalidRequestError for what is
        no device.
        """
        chosen = WorkerDevice(device)
        if self.device is not None and self.device.identity == chosen.identity:
            return
        self.device = chosen
        with suppress(KvtierError), self.connected() as connection:
            if isinstance(connection, Connection):
                connection.use_device(chosen, self.timeout_seconds)

    @property
    def has_memory(self) -> bool:
        """Whether the agent's memory is shared with this process now."""
        return isinstance(self._connection, Connection)

    @property
    def is_connected(self) -> bool:
        """Whether calls are sent to an agent now."""
        return self._connection is not None

    def close(self) -> None:
        """Ends the connection. Arrays of loaded blocks stay readable."""
        if os.getpid() != self._pid:  # locks and threads are the parent's
            return
        self._closing.set()
        with self._lock:
            restorer, self._restorer = self._restorer, None
        if restorer is not None:
            restorer.join()
        for connection in (self._connection, self._suspended):
            if connection is not None:
                connection.close()
        self._connection = self._suspended = None
        self._failure, self._trouble = AgentUnavailableError, "the client is closed"

    @contextmanager
    def connected(
        self, wanted: Connection | StreamConnection | None = None
    ) -> Iterator[Connection | StreamConnection]:
        """The connection for one call; with `wanted`, only that one.

        Raises AgentUnavailableError at once when there is none. A call that ends as if the agent
        were gone suspends the connection.
        """
        connection = self._connection
        if connection is None or wanted not in (None, connection):
            raise self._failure(self._trouble)
        if os.getpid() != self._pid:
            raise AgentUnavailableError("this client was made before a fork: make one after it")
        try:
            yield connection
        except _SUSPENDING as error:
            self._suspend(connection, error)
            raise
        except Exception:
            raise
        except BaseException:  # an interrupt: nobody will read the answer
            self._suspend(connection, AgentUnavailableError("a call was interrupted"))
            raise

    @contextmanager
    def attached(self, wanted: Connection | None = None) -> Iterator[Connection]:
        """As `connected`, with shared memory. Raises NoSharedMemoryError where there is none."""
        with self.connected(wanted) as connection:
            if isinstance(connection, StreamConnection):
                raise NoSharedMemoryError(
                    f"blocks come from {self.address} by streams: use load_into and store"
                )
            yield connection

    def _suspend(
        self, connection: Connection | StreamConnection | None, error: KvtierError
    ) -> None:
        with self._lock:
            if self._closing.is_set() or self._connection is not connection:
                return
            self._connection, self._suspended = None, connection
            self._note(error)
            self._restorer = threading.Thread(
                target=self._restore, name="kvtier-client", daemon=True
            )
            self._restorer.start()
        log.warning("kvtier: %s", self._trouble)

    def _note(self, error: Exception) -> None:
        """What calls raise from now on: what the agent objects to, or that it is away."""
        objects = isinstance(error, KvtierError) and not isinstance(error, _SUSPENDING)
        self._failure = type(error) if objects else AgentUnavailableError
        what = "refused by the agent" if objects else "no agent"
        self._trouble = f"{what} at {self.address}: {self._explain(error)}"

    def _explain(self, error: Exception) -> str:
        if isinstance(error, DeadlineExceededError):
            return f"it did not answer within {self.timeout_seconds:g} s; it may hang"
        if not self._endpoint.is_local:
            return str(error)
        try:
            socket_path(self.address).stat()
        except FileNotFoundError:
            return "there is no such socket; start one with `kvtier agent`"
        except OSError as trouble:
            return f"{trouble.strerror}: only the agent's user and `socket_group` may connect"
        return str(error)

    def _restore(self) -> None:
        """Asks until the agent answers, then ends."""
        delay = 0.0
        while not self._closing.wait(delay * random.uniform(0.5, 1.0)):
            try:
                connection = self._revive()
            except Exception as error:  # whatever it is, the next attempt may do better
                self._note(error)
                delay = min(max(2 * delay, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS)
                continue
            with self._lock:
                self._connection, self._restorer = connection, None
            log.warning("kvtier: the agent at %s answers again", self.address)
            return

    def _place(self, connection: Connection) -> None:
        """Closes it if that fails."""
        try:
            if self.device is not None:
                connection.use_device(self.device, self.timeout_seconds)
        except BaseException:
            connection.close()
            raise

    def _revive(self) -> Connection | StreamConnection:
        """A new connection, once the old one is given up."""
        if self._suspended is not None:
            if not self._suspended.retire():
                raise AgentUnavailableError("slots of the old connection are being written")
            self._suspended.close()
            self._suspended = None
        return self._connect()

    def _connect(self) -> Connection | StreamConnection:
        refusal: KvtierError | None = None
        if self._transport != "stream":
            try:
                connection = Connection(self.address, self._client_id, self.timeout_seconds)
                self._place(connection)
                return connection
            except KvtierError as error:
                if self._transport == "memory" or not _is_refusal(error):
                    raise
                refusal = error
        streams = StreamConnection(self._endpoint, self.worker, self.timeout_seconds, refusal)
        if refusal is not None:
            log.warning("kvtier: streams instead of shared memory: %s", refusal)
        return streams

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _is_refusal(error: KvtierError) -> bool:
    """Whether an agent that is there does not let this process attach, now and later."""
    if isinstance(error, AccessDeniedError | InvalidRequestError | NoSharedMemoryError):
        return True
    return isinstance(error, AgentUnavailableError) and isinstance(
        error.__cause__, FileNotFoundError | PermissionError | ConnectionRefusedError
    )

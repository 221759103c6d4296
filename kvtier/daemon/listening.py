"""The agent's APIs on TCP: their files, read again when they change, and their servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import ServiceDescriptor

from kvtier.access.certificates import Certificates
from kvtier.access.keyring import Keyring
from kvtier.agent.serving.admission import Admission
from kvtier.config.certificate_files import load_certificates
from kvtier.config.credentials_file import load_credentials
from kvtier.config.listen import ListenConfig
from kvtier.daemon.watched_files import WatchedFiles
from kvtier.errors import ConfigError
from kvtier.rpc.call_counts import CallCounts
from kvtier.rpc.guard import Guard
from kvtier.rpc.server import MAX_CONNECTIONS, Server
from kvtier.rpc.tls import ServerTls

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Source(Generic[T]):
    """Files that are read together, and what is done with what they say."""

    what: str
    files: WatchedFiles
    load: Callable[[], T]
    use: Callable[[T], None]
    #: Why they cannot be used as they are now.
    error: str = ""

    async def reload(self) -> None:
        """What cannot be used changes nothing: all goes on as before."""
        if not await asyncio.to_thread(self.files.have_changed):
            return
        try:
            loaded = await asyncio.to_thread(self.load)
        except ConfigError as error:
            self.error = str(error)
            log.error("%s; the %s that were read before still hold", error, self.what)
            return
        self.use(loaded)
        self.error = ""
        log.info("read %s again", self.what)


@dataclass(frozen=True)
class Offer:
    """A service, and what admits its calls."""

    service: ServiceDescriptor
    servicers: Sequence[object]
    admission: Admission
    calls: CallCounts
    stall_seconds: float | None = None
    max_connections: int = MAX_CONNECTIONS
    #: Adds further services.
    also: Callable[[Server], None] = lambda server: None


class Listening:
    """Nothing without an address. Raises ConfigError for files that cannot be used.

    Credentials and certificates are read again each for themselves: a broken key does not keep a
    token that was taken back.
    """

    def __init__(self, config: ListenConfig) -> None:
        self._config = config
        self._sources: list[_Source[Any]] = []
        self._keyring = Keyring({}, time.time)
        self._tls: ServerTls | None = None
        self.certificate_expires_at: float | None = None
        if config.address is None and config.admin_address is None:
            return
        assert config.credentials_file is not None, "the configuration requires it"
        self._keep(
            "credentials",
            [config.credentials_file],
            partial(load_credentials, config.credentials_file),
            self._keyring.replace,
        )
        self._keep(
            "certificates",
            [config.tls_cert, config.tls_key, config.tls_client_ca],
            partial(load_certificates, config),
            self._use_certificates,
        )

    @property
    def errors(self) -> list[str]:
        """Of files that have changed and cannot be used."""
        return [source.error for source in self._sources if source.error]

    def _keep(
        self,
        what: str,
        files: Sequence[Path | None],
        load: Callable[[], T],
        use: Callable[[T], None],
    ) -> None:
        """Uses what the files say, now and whenever they change."""
        watched = WatchedFiles([file for file in files if file is not None])
        use(load())
        self._sources.append(_Source(what, watched, load, use))

    def _use_certificates(self, certificates: Certificates | None) -> None:
        if certificates is None:
            return
        self.certificate_expires_at = certificates.expires_at
        if self._tls is None:
            self._tls = ServerTls(certificates)
        else:
            self._tls.replace(certificates)

    async def open(self, workers: Offer, operators: Offer) -> list[Server]:
        """Servers that listen; not yet ready."""
        places = (
            ("listen.address", self._config.address, workers),
            ("listen.admin_address", self._config.admin_address, operators),
        )
        servers = []
        for field, address, offer in places:
            if address is None:
                continue
            server = Server(
                offer.admission,
                offer.stall_seconds,
                Guard(self._keyring),
                offer.calls,
                offer.max_connections,
            )
            server.add(offer.service, *offer.servicers)
            offer.also(server)
            servers.append(server)
            try:
                port = await server.listen_remotely(address, self._tls)
            except ConfigError as error:
                await asyncio.gather(*(each.stop(0) for each in servers))
                raise ConfigError(f"{field}: {error}") from error
            host = address.rpartition(":")[0]
            how = "TLS 1.3" if self._tls is not None else "NO TLS"
            log.info("%s: serving %s on %s:%d, %s", field, offer.service.name, host, port, how)
        if servers and self._tls is None:
            log.warning(
                "listen.insecure: without TLS, whoever is on the way reads tokens and blocks, and "
                "can change them"
            )
        return servers

    async def watch(self) -> None:
        """Reads files again when they have changed; without end."""
        while self._sources:
            await asyncio.sleep(self._config.reload_interval)
            for source in self._sources:
                await source.reload()

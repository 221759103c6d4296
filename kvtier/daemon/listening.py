"""The agent's APIs on TCP: their files, read again when they change, and their servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from kvtier.access.certificates import Certificates
from kvtier.access.credential import Credential
from kvtier.access.keyring import Keyring
from kvtier.access.proof import Proof
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
    """Nothing without an address. Raises ConfigError for files that cannot be used."""

    def __init__(self, config: ListenConfig) -> None:
        self._config = config
        self._is_on = config.address is not None or config.admin_address is not None
        files = config.credentials_file, config.tls_cert, config.tls_key, config.tls_client_ca
        self._files = WatchedFiles([file for file in files if file is not None])
        credentials, certificates = self._load() if self._is_on else ({}, None)
        self._keyring = Keyring(credentials, time.time)
        self._tls = ServerTls(certificates) if certificates is not None else None

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
            port = await server.listen_remotely(address, self._tls)
            servers.append(server)
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
        while self._is_on:
            await asyncio.sleep(self._config.reload_interval)
            if await asyncio.to_thread(self._files.have_changed):
                await self._reload()

    async def _reload(self) -> None:
        """What cannot be used changes nothing: all goes on as before."""
        try:
            credentials, certificates = await asyncio.to_thread(self._load)
        except ConfigError as error:
            log.error("%s; what was read before still holds", error)
            return
        self._keyring.replace(credentials)
        if self._tls is not None and certificates is not None:
            self._tls.replace(certificates)
        log.info("read credentials and certificates again: %d credentials", len(credentials))

    def _load(self) -> tuple[dict[Proof, Credential], Certificates | None]:
        assert self._config.credentials_file is not None, "the configuration requires it"
        return load_credentials(self._config.credentials_file), load_certificates(self._config)

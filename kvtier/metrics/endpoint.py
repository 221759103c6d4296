"""/metrics, /healthz and /readyz."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from http import HTTPStatus

from kvtier.metrics.agent_samples import add_memory
from kvtier.metrics.collector import Collector
from kvtier.metrics.exposition import render
from kvtier.metrics.http_server import Answer, HttpServer
from kvtier.metrics.sources import Sources

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class MetricsEndpoint:
    """Listens while `run` runs. An address that cannot be had is tried again and again: it may be
    that of an agent that is about to end."""

    def __init__(self, sources: Sources, host: str, port: int, most_names: int) -> None:
        self._sources = sources
        self.collector = Collector(sources, most_names)
        self._host, self._port = host, port
        self._scrape = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled."""
        routes = {"/metrics": self.metrics, "/healthz": self.health, "/readyz": self.readiness}
        server = HttpServer(routes)
        try:
            await self._listen(server)
            await asyncio.get_running_loop().create_future()
        finally:
            await server.close()

    async def _listen(self, server: HttpServer) -> None:
        address, told = self._address(self._port), ""
        while True:
            try:
                port = await server.listen(self._host, self._port)
            except OSError as error:
                reason = _reason(error)
                if reason != told:
                    log.warning(
                        "metrics.address: %s cannot be listened on: %s; the agent serves workers "
                        "without it, and tries again every %g s",
                        address,
                        reason,
                        _RETRY_SECONDS,
                    )
                told = reason
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                log.info("metrics at http://%s/metrics", self._address(port))
                return

    def _address(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def metrics(self, headers: Mapping[str, str]) -> Answer:
        """The numbers are read on the event loop, and written by a thread, which only has the
        interpreter for half a millisecond at a time (`tune_interpreter`)."""
        accept = headers.get("accept", "")
        async with self._scrape:  # one at a time, whoever asks
            samples = await self.collector.collect()

            def rendered() -> tuple[bytes, str]:
                add_memory(samples)
                return render(samples, accept)

            body, content_type = await asyncio.to_thread(rendered)
        return Answer(HTTPStatus.OK, body, content_type)

    async def health(self, headers: Mapping[str, str]) -> Answer:
        """That there is an answer says it."""
        return Answer(HTTPStatus.OK, b"ok\n")

    async def readiness(self, headers: Mapping[str, str]) -> Answer:
        reason = self._sources.why_not_ready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return Answer(status, f"{reason or 'ready'}\n".encode())


def _reason(error: OSError) -> str:
    """Without what asyncio says around it; a name that cannot be found has no errno."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error)

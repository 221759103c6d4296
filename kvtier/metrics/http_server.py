"""HTTP for probes and scrapers: GET, one answer a connection, and bounds on everything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

log = logging.getLogger(__name__)

_MOST_REQUEST_BYTES = 8 << 10
_MOST_CONNECTIONS = 16
_READ_SECONDS = 5.0
_WRITE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


#: Answers a request, given its headers by their names in lower case.
Route = Callable[[Mapping[str, str]], Awaitable[Answer]]


class HttpServer:
    """Serves `routes` by path, on the event loop.

    A request has 8 KiB and 5 seconds, an answer 10 seconds; of more than 16 connections at a time
    the later ones are closed at once.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """The port: a free one for 0. Raises OSError."""
        self._server = await asyncio.start_server(
            self._accepted, host, port, limit=_MOST_REQUEST_BYTES
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Ends connections under way too."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, TimeoutError):
                await self._exchange(reader, writer)
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_READ_SECONDS):
            head = await _head(reader)
        if head:
            answer, is_whole = await self._answer(head)
            async with asyncio.timeout(_WRITE_SECONDS):
                writer.write(_bytes_of(answer, is_whole=is_whole))
                writer.close()
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[Answer, bool]:
        """And whether its body is asked for."""
        if len(head) > _MOST_REQUEST_BYTES:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), True
        line, *lines = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _plain(HTTPStatus.BAD_REQUEST), True
        method, target, _ = words
        route = self._routes.get(target.partition("?")[0])
        if route is None:
            return _plain(HTTPStatus.NOT_FOUND, ", ".join(self._routes)), method != "HEAD"
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED), True
        pairs = (each.partition(":") for each in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        try:
            return await route(headers), method == "GET"
        except Exception:
            log.exception("HTTP: %s failed", target.partition("?")[0])
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR), method == "GET"


async def _head(reader: asyncio.StreamReader) -> bytes:
    """The request line and headers: longer than allowed if they are; empty if none came."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return bytes(_MOST_REQUEST_BYTES + 1)
    except asyncio.IncompleteReadError:
        return b""


def _plain(status: HTTPStatus, more: str = "") -> Answer:
    text = f"{status.phrase}: {more}" if more else status.phrase
    return Answer(status, f"{text}\n".encode())


def _bytes_of(answer: Answer, *, is_whole: bool) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        f"{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (answer.body if is_whole else b"")

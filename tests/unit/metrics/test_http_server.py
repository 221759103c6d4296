"""HTTP for probes and scrapers: what it answers, and what it does not put up with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import pytest

from kvtier.metrics.http_server import Answer, HttpServer

BODY = b"x" * (4 << 20)


async def echo(headers: Mapping[str, str]) -> Answer:
    return Answer(HTTPStatus.OK, headers.get("accept", "").encode(), "text/x")


async def large(headers: Mapping[str, str]) -> Answer:
    return Answer(HTTPStatus.OK, BODY)


async def failing(headers: Mapping[str, str]) -> Answer:
    raise KeyError("a bug")


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    server = HttpServer({"/echo": echo, "/large": large, "/failing": failing})
    try:
        yield await server.listen("127.0.0.1", 0)
    finally:
        async with asyncio.timeout(3):  # less than a silent connection may last
            await server.close()


async def exchange(port: int, request: bytes) -> bytes:
    """All that comes until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def ask(request: bytes) -> tuple[bytes, bytes, bytes]:
    """Status line, headers and body."""

    async def run() -> bytes:
        async with serving() as port, asyncio.timeout(10):
            return await exchange(port, request)

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    line, _, headers = head.partition(b"\r\n")
    return line, headers, body


def test_a_get_is_answered_with_headers_and_body() -> None:
    line, headers, body = ask(b"GET /echo?x=1 HTTP/1.1\r\nHost: a\r\nACCEPT: some/type \r\n\r\n")
    assert line == b"HTTP/1.1 200 OK"
    assert body == b"some/type"
    assert headers.split(b"\r\n") == [
        b"Content-Type: text/x",
        b"Content-Length: 9",
        b"Connection: close",
    ]


def test_a_head_has_no_body() -> None:
    line, headers, body = ask(b"HEAD /large HTTP/1.0\r\n\r\n")
    assert (line, body) == (b"HTTP/1.1 200 OK", b"")
    assert b"Content-Length: 4194304" in headers


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /echo HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /echo\r\n\r\n", b"400 Bad Request"),
        (b"GET /echo HTTP/2\r\n\r\n", b"400 Bad Request"),
        (b"\xff\x00 \xff \x16\r\n\r\n", b"400 Bad Request"),
        (b"GET /echo HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431 Request Header Fields"),
    ],
)
def test_what_is_wrong_is_said(request_bytes: bytes, status: bytes) -> None:
    line, headers, _ = ask(request_bytes)
    assert line.startswith(b"HTTP/1.1 " + status)
    assert (b"Allow: GET, HEAD" in headers) == status.startswith(b"405")


def test_a_bug_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    line, _, body = ask(b"GET /failing?x HTTP/1.1\r\n\r\n")
    assert line == b"HTTP/1.1 500 Internal Server Error"
    assert b"bug" not in body
    assert "HTTP: /failing failed" in caplog.text
    assert "KeyError" in caplog.text


def test_silent_connections_are_bounded_and_do_not_outlive_the_server() -> None:
    async def run() -> None:
        async with serving() as port, asyncio.timeout(10):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            ended = [asyncio.create_task(reader.read()) for reader, _ in silent]
            # Four too many: they are hung up on at once, the others have some seconds.
            while sum(task.done() for task in ended) < 4:
                await asyncio.wait(
                    [t for t in ended if not t.done()], return_when="FIRST_COMPLETED"
                )
            assert sum(task.done() for task in ended) == 4
            silent[0][1].write(b"GET /echo HTTP/1.1\r\n\r\n")
            assert (await ended[0]).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(2):
            await asyncio.gather(*ended, return_exceptions=True)
        for _, writer in silent:
            writer.close()

    asyncio.run(run())


def test_a_reader_that_stops_holds_up_nobody() -> None:
    async def run() -> None:
        async with serving() as port, asyncio.timeout(10):
            _, stuck = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            stuck.write(b"GET /large HTTP/1.1\r\n\r\n")
            answer = await exchange(port, b"GET /large HTTP/1.1\r\n\r\n")
            assert answer.endswith(BODY)
        stuck.transport.abort()

    asyncio.run(run())

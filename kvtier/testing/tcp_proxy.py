"""A bad network between a client and a server on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
_CHUNK_BYTES = 256 << 10
_CHUNKS_ON_THE_WAY = 64
_FOREVER_BYTES = 1 << 62
_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Conduct:
    """What the network does to bytes."""

    delay_seconds: float = 0.0
    seconds_per_byte: float = 0.0
    reply_bytes: int = _FOREVER_BYTES
    is_black_hole: bool = False


class TcpProxy:
    """Listens on a port of its own and passes bytes on to another; a context manager.

    What it does instead takes effect at once, for connections that are open too. A thread of its
    own does it.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._conduct = _Conduct()
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._links: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")
        self._thread.start()
        try:
            self._server = self._run(self._listen())
        except BaseException:
            self._end_thread()
            raise
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Of a Redis server behind it."""
        return f"redis://{HOST}:{self.port}"

    # What it does.

    def pass_on(self) -> None:
        """As a good network; what was held back arrives now."""
        self._behave(_Conduct())

    def delay(self, seconds: float) -> None:
        """Every byte arrives so much later, in both directions."""
        self._behave(_Conduct(delay_seconds=seconds))

    def throttle(self, bytes_per_second: float) -> None:
        """Of each connection, and in each direction, no more than so much arrives."""
        self._behave(_Conduct(seconds_per_byte=1 / bytes_per_second))

    def cut_after(self, reply_bytes: int) -> None:
        """Resets each connection once so much of the server's replies has passed over it."""
        self._behave(_Conduct(reply_bytes=reply_bytes))

    def swallow(self) -> None:
        """Nothing arrives, nothing is refused, nothing ends: a black hole."""
        self._behave(_Conduct(is_black_hole=True))

    def _behave(self, conduct: _Conduct) -> None:
        async def turn() -> None:
            self._conduct = conduct
            if conduct.is_black_hole:
                self._passing.clear()
            else:
                self._passing.set()

        self._run(turn())

    # Connections.

    async def _listen(self) -> asyncio.Server:
        self._passing.set()
        return await asyncio.start_server(self._accepted, HOST, 0)

    async def _accepted(
        self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            await self._link(client_in, client_out)
        except (OSError, asyncio.CancelledError):
            pass  # one end is gone, or the proxy closes
        finally:
            client_out.transport.abort()
            self._links.discard(task)

    async def _link(
        self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter
    ) -> None:
        await self._passing.wait()
        server_in, server_out = await asyncio.open_connection(HOST, self._target_port)
        try:
            ways = [
                asyncio.ensure_future(self._carry(client_in, server_out, is_reply=False)),
                asyncio.ensure_future(self._carry(server_in, client_out, is_reply=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            server_out.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        """Ends with the connection."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)
        deliver = asyncio.ensure_future(self._deliver(on_the_way, target, is_reply=is_reply))
        try:
            while not deliver.done() and (chunk := await source.read(_CHUNK_BYTES)):
                await on_the_way.put((time.monotonic(), chunk))
            await on_the_way.put((time.monotonic(), b""))
            await deliver
        finally:
            deliver.cancel()
            await asyncio.gather(deliver, return_exceptions=True)

    async def _deliver(
        self,
        on_the_way: asyncio.Queue[tuple[float, bytes]],
        target: asyncio.StreamWriter,
        *,
        is_reply: bool,
    ) -> None:
        passed = 0
        while True:
            sent_at, chunk = await on_the_way.get()
            await self._passing.wait()
            await asyncio.sleep(max(0.0, sent_at + self._conduct.delay_seconds - time.monotonic()))
            await asyncio.sleep(len(chunk) * self._conduct.seconds_per_byte)
            await self._passing.wait()
            left = self._conduct.reply_bytes - passed if is_reply else len(chunk)
            if not chunk or left <= 0:
                return
            target.write(chunk[:left])
            await target.drain()
            if left < len(chunk):
                return
            passed += len(chunk)

    # The thread.

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_SECONDS)

    async def _close(self) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        """Ends all connections."""
        with contextlib.suppress(TimeoutError):
            self._run(self._close())
        self._end_thread()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

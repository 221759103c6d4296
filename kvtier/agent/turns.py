"""Keeping the event loop's turns short, and those of data apart."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from weakref import WeakKeyDictionary

#: Sizes of slices that take a fraction of 1 ms.
READ_SLICE = 512
WRITE_SLICE = 16


async def slices(count: int, size: int) -> AsyncIterator[slice]:
    """Cuts a batch; other work gets its turn between two slices."""
    for start in range(0, count, size):
        if start:
            await asyncio.sleep(0)
        yield slice(start, min(start + size, count))


async def data_slices(count: int, size: int) -> AsyncIterator[slice]:
    """As `slices`, for loads and stores: in each turn of the loop one slice of all of theirs.

    A call comes within one turn of the loop, and so behind one slice of data, however many others
    move data; the slice after that gives way to it.
    """
    line = data_line()
    for start in range(0, count, size):
        if start:
            await line.turn()
        yield slice(start, min(start + size, count))


def data_line() -> Line:
    """Of those who move data for a worker, on the running loop."""
    return _line_of(_data_lines)


def background_line() -> Line:
    """Of what nobody waits for, on the running loop; data has its own turns beside it."""
    return _line_of(_background_lines)


class Line:
    """Those who wait for a turn of the loop to themselves, the first one first."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False
        self._gives_way = False

    async def begin(self) -> None:
        """Returns when a turn is the caller's: at once if nobody has this one."""
        if self._is_taken:
            await self._wait(self._waiting.append)
        else:
            self._take()

    async def turn(self) -> None:
        """Gives the turn up for another one; others get theirs meanwhile."""
        await self._another(self._waiting.append)
        if self._gives_way:  # once: each turn is put off by one at most
            self._gives_way = False
            await self._another(self._waiting.appendleft)

    def give_way(self) -> None:
        """What has just come has the next turn to itself: whose turn it is takes the one after."""
        self._gives_way = True

    async def _another(self, queue: _Queue) -> None:
        if self._is_taken:
            await self._wait(queue)
        else:
            self._take()
            await asyncio.sleep(0)

    def _take(self) -> None:
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._next)

    async def _wait(self, queue: _Queue) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue(turn)
        await turn

    def _next(self) -> None:
        """Once in each turn of the loop, for as long as somebody waits."""
        self._is_taken = False
        while self._waiting and not self._is_taken:
            turn = self._waiting.popleft()
            if not turn.done():  # not cancelled meanwhile
                turn.set_result(None)
                self._take()


_Queue = Callable[[asyncio.Future[None]], None]
_Lines = WeakKeyDictionary[asyncio.AbstractEventLoop, Line]
_data_lines: _Lines = WeakKeyDictionary()
_background_lines: _Lines = WeakKeyDictionary()


def _line_of(lines: _Lines) -> Line:
    loop = asyncio.get_running_loop()
    line = lines.get(loop)
    if line is None:
        line = lines[loop] = Line()
    return line

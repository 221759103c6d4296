"""A terminal that is drawn on as a whole, and left as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.live import Live

from kvtier.cli.live.keyboard import read_keys

#: Signals that end a command, and that would leave the terminal as it is.
_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Terminal:
    """Standard input and output; a context manager, of the main thread.

    Whatever ends the block, also a signal but SIGKILL, the terminal is as before. `wake` may be
    called by any thread and ends `wait`, as a key and a change of size do.
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False)
        self._fd = sys.stdin.fileno()
        self._live: Live | None = None
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._awake, self._alarm = os.pipe()
        os.set_blocking(self._alarm, False)

    def wake(self) -> None:
        with suppress(BlockingIOError, OSError):  # it is awake already, or closed
            os.write(self._alarm, b"!")

    def draw(self, drawing: RenderableType) -> None:
        """Replaces what is there."""
        assert self._live is not None
        self._live.update(drawing, refresh=True)

    def wait(self, seconds: float) -> list[str]:
        """Keys; or none, when the time is over or somebody wakes it. EOFError without terminal."""
        ready, _, _ = select.select([self._fd, self._awake], [], [], seconds)
        if self._awake in ready:
            os.read(self._awake, 4096)
        return read_keys(self._fd) if self._fd in ready else []

    def suspend(self) -> None:
        """What Ctrl-Z does to other programs."""
        self._leave()
        os.kill(0, signal.SIGSTOP)
        self._enter()

    def _enter(self) -> None:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSADRAIN)
        mode = termios.tcgetattr(self._fd)
        mode[6][termios.VSUSP] = b"\x00"  # Ctrl-Z comes as a key, at a time when it can be followed
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        self._live = Live(
            console=self.console, screen=True, auto_refresh=False, vertical_overflow="crop"
        )
        self._live.start()

    def _leave(self) -> None:
        try:
            if self._live is not None:
                self._live.stop()
                self._live = None
        finally:
            if self._before:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
                self._before = []

    def __enter__(self) -> Terminal:
        for number in _ENDINGS:
            self._handlers[number] = signal.signal(number, _end)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resized)
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self.wake()

    def __exit__(self, *exc: object) -> None:
        try:
            with suppress(OSError, termios.error):  # the terminal may be gone
                self._leave()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            os.close(self._awake)
            os.close(self._alarm)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for each in _ENDINGS:
        signal.signal(each, signal.SIG_IGN)  # cleaning up goes on to its end
    sys.exit(128 + number)

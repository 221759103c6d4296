"""A command on a terminal of its own, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from types import TracebackType

import pyte

from tests.faults.waiting import wait_until
from tests.unit.cli.command import PROGRAM, REPOSITORY

_SECONDS = 20.0
_TO_OTHER_SCREEN, _BACK = b"\x1b[?1049h", b"\x1b[?1049l"
_HIDE_CURSOR, _SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


class ScreenProcess:
    """Runs `kvtier ARGUMENTS`; a context manager that leaves nothing behind."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self._fd, terminal = os.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        self.resize(columns, rows)
        self._mode = termios.tcgetattr(terminal)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KVTIER_")}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environ.pop(name, None)
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=REPOSITORY,
            env={**environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        self._terminal = terminal  # stays open, or what was written last would be lost

    @property
    def lines(self) -> list[str]:
        """What is there now."""
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 1 << 16)
            self.output += data
            self._stream.feed(data)
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, condition: Callable[[str], object]) -> str:
        """The text, as soon as it is as wanted."""
        try:
            wait_until(lambda: condition(self.text), _SECONDS, 0.02)
        except AssertionError as error:
            raise AssertionError(f"not within {_SECONDS:g} s; it shows\n{self.text}") from error
        return self.text

    def until_there(self, *words: str) -> str:
        """Whichever way the lines are broken."""
        return self.until(lambda text: all(word in " ".join(text.split()) for word in words))

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)
        if hasattr(self, "process"):  # the terminal is not its controlling one
            self.process.send_signal(signal.SIGWINCH)

    def end(self) -> int:
        """Its exit status."""
        wait_until(lambda: self.lines and self.process.poll() is not None, _SECONDS, 0.02)
        return self.process.wait()

    @property
    def is_restored(self) -> bool:
        """Whether the terminal is as it was: mode, screen and cursor."""
        _ = self.lines
        return (
            termios.tcgetattr(self._terminal) == self._mode
            and self.output.rfind(_BACK) >= self.output.rfind(_TO_OTHER_SCREEN)
            and self.output.rfind(_SHOW_CURSOR) >= self.output.rfind(_HIDE_CURSOR)
        )

    @property
    def is_drawing(self) -> bool:
        """Whether it has the screen for itself."""
        _ = self.lines
        return self.output.rfind(_TO_OTHER_SCREEN) > self.output.rfind(_BACK)

    def __enter__(self) -> ScreenProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self._terminal)

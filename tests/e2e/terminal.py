"""The command line on a terminal of 80 columns, as an operator has it."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import dataclass

from tests.unit.cli.command import PROGRAM, REPOSITORY

COLUMNS, LINES = 80, 24
_SECONDS = 60.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Screen:
    """What a command wrote, without control sequences, and how it ended."""

    text: str
    has_colours: bool
    code: int

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def words(self) -> str:
        """For sentences that may be broken anywhere."""
        return " ".join(self.text.split())


def on_terminal(*arguments: str, answer: str = "", **environ: str) -> Screen:
    """Runs `kvtier`, and types an answer beforehand."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVTIER_")}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        clean.pop(name, None)
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=REPOSITORY,
            env={**clean, "TERM": "xterm-256color", **environ},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    with process:
        try:
            os.write(ours, answer.encode())
            written = _read_all(ours)
            code = process.wait(_SECONDS)
        finally:
            process.kill()
            os.close(ours)
    text = written.decode().replace("\r\n", "\n")
    return Screen(_CONTROL.sub("", text), "\x1b[" in text, code)


def _read_all(descriptor: int) -> bytes:
    """Until the other end is closed, which a terminal says by an error."""
    written = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return written
        if not part:
            return written
        written += part

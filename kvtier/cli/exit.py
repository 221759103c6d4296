"""How a command ends: exit codes, and what an error says to do about it."""

from __future__ import annotations

import os
import signal
import sys
from enum import IntEnum
from typing import NoReturn

from kvtier.errors import (
    AgentUnavailableError,
    ConfigError,
    DeadlineExceededError,
    InvalidRequestError,
    KvtierError,
)


class ExitCode(IntEnum):
    """Listed in `kvtier --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3


def exit_code(error: KvtierError) -> ExitCode:
    """The code for an error that ended a command."""
    match error:
        case AgentUnavailableError() | DeadlineExceededError():
            return ExitCode.UNREACHABLE
        case ConfigError() | InvalidRequestError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILED


def message(error: KvtierError) -> str:
    """The error's message, or its name where it has none."""
    return str(error) or type(error).__name__


def exit_on_sigterm() -> None:
    """From now on SIGTERM ends the command as SystemExit, so that it cleans up behind itself."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # cleaning up goes on to its end
    sys.exit(128 + number)


def drop_output() -> None:
    """What could not be written is not tried again at the interpreter's end."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)

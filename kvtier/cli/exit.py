"""How a command ends: exit codes, and what an error says to do about it."""

from __future__ import annotations

from enum import IntEnum

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


def explain(error: KvtierError) -> str:
    """The error's message, or its name where it has none."""
    return str(error) or type(error).__name__

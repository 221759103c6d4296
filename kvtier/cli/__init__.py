"""The `kvtier` command: one module per verb, each importing what it needs when it runs."""

from __future__ import annotations

import errno
import sys
from typing import Final, NoReturn

import typer

from kvtier.cli.app import app
from kvtier.cli.exit import ExitCode, drop_output, exit_code, message
from kvtier.errors import KvtierError

__all__ = ["main"]

_CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> NoReturn:
    """Run the command line; errors of kvtier become one line on stderr and an exit code."""
    try:
        app(prog_name="kvtier")
    except KvtierError as error:
        typer.echo(f"kvtier: {message(error)}", err=True)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        drop_output()
        typer.echo(f"kvtier: cannot write: {error.strerror}", err=True)
        sys.exit(ExitCode.FAILED)
    sys.exit(0)

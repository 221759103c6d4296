"""The `kvtier` command: one module per verb, each importing what it needs when it runs."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from kvtier.cli.app import app
from kvtier.cli.exit import exit_code, explain
from kvtier.errors import KvtierError

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line; errors of kvtier become one line on stderr and an exit code."""
    try:
        app(prog_name="kvtier")
    except KvtierError as error:
        typer.echo(f"kvtier: {explain(error)}", err=True)
        sys.exit(exit_code(error))
    sys.exit(0)

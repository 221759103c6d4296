"""`kvtier version`."""

from __future__ import annotations

import importlib.metadata

import typer

from kvtier.cli.document import print_json
from kvtier.cli.options import JsonOption


def version(as_json: JsonOption = False) -> None:
    """Print the version.

    Example: kvtier version --json
    """
    number = importlib.metadata.version("kvtier")
    if as_json:
        print_json({"version": number})
    else:
        typer.echo(f"kvtier {number}")

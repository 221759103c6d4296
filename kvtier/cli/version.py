"""`kvtier version`."""

from __future__ import annotations

import importlib.metadata

import typer


def version() -> None:
    """Print the version."""
    typer.echo(f"kvtier {importlib.metadata.version('kvtier')}")

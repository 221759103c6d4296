"""Command lines of kvtier in files that are not Python, against the program's own parser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from kvtier.cli.app import app

DEPLOY = Path(__file__).parents[2] / "deploy"


def check(arguments: Sequence[str]) -> str:
    """The verb of a command line, without `kvtier`. Raises what the program says of a wrong one;
    runs nothing."""
    command: Any = typer.main.get_command(app)
    rest, names, context = list(arguments), [], None
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, context, info_name="kvtier")
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
    command.make_context(names[-1], rest, parent=context)
    return " ".join(names)

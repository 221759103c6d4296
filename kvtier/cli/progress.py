"""The progress of a long call: one line that changes, one object per line, or just its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

import typer

from kvtier.cli.document import as_document, print_json
from kvtier.errors import KvtierError

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import DrainProgress, ScrubProgress

Progress = TypeVar("Progress", "DrainProgress", "ScrubProgress")

ERASE: Final = "\r\x1b[K"


def follow(
    reports: Iterator[Progress], line: Callable[[Progress], str], *, as_json: bool
) -> Progress:
    """Shows each report, and returns the last one.

    The line goes to stderr, and there only if that is a terminal. Raises KvtierError if the
    agent ended before the call did.
    """
    is_drawn = not as_json and sys.stderr.isatty()
    try:
        for report in reports:
            if as_json:
                print_json(as_document(report))
            elif is_drawn:
                typer.echo(f"{ERASE}{line(report)}", err=True, nl=False)
            if report.done:
                return report
    finally:
        if is_drawn:
            typer.echo(ERASE, err=True, nl=False)
    raise KvtierError("the agent ended the call before it was done: see its log")

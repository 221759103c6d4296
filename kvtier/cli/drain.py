"""`kvtier drain`: let an agent finish, before it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
)
from kvtier.cli.progress import follow
from kvtier.cli.text import human_bytes, plural

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import DrainProgress

_DEFAULT_GRACE_SECONDS: Final = 10.0


def drain(
    grace_seconds: Annotated[
        float,
        typer.Option(
            "--grace",
            min=0.0,
            max=86_400.0,
            metavar="SECONDS",
            help="After this, leases are revoked.",
        ),
    ] = _DEFAULT_GRACE_SECONDS,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Take no new work, finish what there is, and write it down.

    When it ends with code 0 the agent may be stopped, and loses nothing that its tiers keep.
    Workers compute meanwhile. The agent stays drained, also when this command is interrupted or
    fails, until `kvtier resume` or its restart.

    With --json each report of progress is an object on a line of its own; the last has "done".

    Example: kvtier drain --grace 30 && systemctl stop kvtier
    """
    try:
        with admin(address, DEFAULT_TIMEOUT_SECONDS) as client:
            end = follow(client.drain(grace_seconds), line, as_json=as_json)
    except KeyboardInterrupt:
        typer.echo("kvtier: the agent stays drained; `kvtier resume` ends that", err=True)
        raise typer.Exit(ExitCode.FAILED) from None
    if not as_json:
        typer.echo(f"drained; {plural(end.session_count, 'session')} still open")


def line(report: DrainProgress) -> str:
    """What it waits for."""
    return (
        f"draining: {plural(report.lease_count, 'lease')}, "
        f"{human_bytes(report.unflushed_bytes)} to be written"
    )

"""`kvtier scrub`: find what a device has damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    DeviceTierArgument,
    DeviceTierName,
    JsonOption,
)
from kvtier.cli.progress import follow
from kvtier.cli.text import human_bytes, percent, plural
from kvtier.core.block import Tier

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import ScrubProgress


def scrub(
    tier: DeviceTierArgument = DeviceTierName.DISK,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="SIZE",
            help="Read at most this in a second, such as 200MiB; else tiers.disk.scrub_rate.",
        ),
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Verify every block of a tier, and drop what is damaged.

    Exit code 0 if every block was sound, 1 if any was damaged: the agent has dropped it and needs
    no repair, but the device may. Interrupting the command ends the scrub.

    With --json each report of progress is an object on a line of its own; the last has "done".

    Example: kvtier scrub disk --rate 200MiB
    """
    rate_bytes = 0 if rate is None else _parsed(rate)
    with admin(address, DEFAULT_TIMEOUT_SECONDS) as client:
        end = follow(client.scrub(Tier[tier.name], rate_bytes), line, as_json=as_json)
    if not as_json:
        typer.echo(summary(end))
    if end.corrupt_count:
        raise typer.Exit(ExitCode.FAILED)


def _parsed(rate: str) -> int:
    from kvtier.config import parse_size

    try:
        rate_bytes = parse_size(rate)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rate") from error
    if rate_bytes < 1:
        raise typer.BadParameter(
            "it must be more than 0; leave it out for the configured rate", param_hint="--rate"
        )
    return rate_bytes


def line(report: ScrubProgress) -> str:
    """While it goes on; the total may be passed by what was stored meanwhile."""
    share = percent(min(report.scanned_count, report.total_count), report.total_count)
    return (
        f"{share}: {report.scanned_count:,} of {plural(report.total_count, 'block')}, "
        f"{human_bytes(report.scanned_bytes)}, {report.corrupt_count:,} damaged"
    )


def summary(end: ScrubProgress) -> str:
    """What was read, and what became of it."""
    read = f"verified {plural(end.scanned_count, 'block')}, {human_bytes(end.scanned_bytes)}"
    if not end.corrupt_count:
        return f"{read}: all sound"
    return f"{read}: {end.corrupt_count:,} damaged and dropped; the agent's log names the device"

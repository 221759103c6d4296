"""`kvtier flush`: wait until a tier has all that was stored."""

from __future__ import annotations

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    LowerTierArgument,
    LowerTierName,
    TimeoutOption,
)
from kvtier.cli.text import human_bytes
from kvtier.core.block import Tier


def flush(
    tier: LowerTierArgument = LowerTierName.DISK,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_LONG_TIMEOUT_SECONDS,
) -> None:
    """Write all that was stored before to a tier; on disk, sync it.

    Ends when it is there. What had been written before does not count.

    Example: kvtier flush disk --timeout 60
    """
    with admin(address, timeout_seconds) as client:
        flushed_bytes = client.flush(Tier[tier.name], timeout_seconds)
    if as_json:
        print_json({"flushed_bytes": flushed_bytes})
    else:
        typer.echo(f"flushed {human_bytes(flushed_bytes)} to {tier.name}")

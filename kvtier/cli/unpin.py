"""`kvtier unpin`: let pinned blocks go again."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)


def unpin(
    pin_id: Annotated[str, typer.Argument(metavar="PIN_ID", help="As `kvtier pins` shows it.")],
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """End a pin: its blocks stay cached, and may be evicted again.

    Example: kvtier unpin 1f0c9a6be2d37a44
    """
    with admin(address, timeout_seconds) as client:
        client.delete_pin(pin_id)
    if as_json:
        print_json({})
    else:
        typer.echo(f"pin {pin_id} has ended")

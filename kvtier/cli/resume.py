"""`kvtier resume`: end a drain."""

from __future__ import annotations

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


def resume(
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Let a drained agent take work again.

    An agent that is not drained goes on as before.

    Example: kvtier resume --address unix:/run/kvtier/admin.sock
    """
    with admin(address, timeout_seconds) as client:
        client.resume()
    if as_json:
        print_json({})
    else:
        typer.echo("the agent takes work")

"""`kvtier pin`: keep blocks from eviction."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.duration import seconds_of
from kvtier.cli.evict import parsed
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.text import human_bytes, human_seconds, plural
from kvtier.errors import InvalidRequestError


def pin(
    namespace: NamespaceArgument,
    hashes: Annotated[
        list[str], typer.Argument(metavar="HASH...", help="Of the blocks, in hexadecimal.")
    ],
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long: 90s, 30m, 1h, 7d.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; `kvtier pins` shows it.")] = "",
    group: Annotated[int, typer.Option(min=0, help="The KV group.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="The shard.")] = 0,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_LONG_TIMEOUT_SECONDS,
) -> None:
    """Keep blocks from eviction for a time.

    They are brought to HOST first, as far as there is room, and stay there, and on DISK where they
    are there. What is not cached is left out. A pin ends by its time, by `kvtier unpin`, and with
    the agent.

    Example: kvtier pin default/my-model 9f2c...e1 --ttl 1h --reason "system prompt"
    """
    seconds = seconds_of(ttl, "--ttl")
    keys = parsed(hashes, "HASH")
    if not keys:
        raise InvalidRequestError("HASH: name one block or more")
    with admin(address, timeout_seconds) as client:
        made = client.create_pin(
            namespace,
            keys,
            seconds,
            reason=reason,
            group=group,
            shard=shard,
            timeout_seconds=timeout_seconds,
        )
    if as_json:
        print_json(as_document(made))
        return
    typer.echo(
        f"pin {made.pin_id}: {made.block_count:,} of {plural(len(set(keys)), 'block')}, "
        f"{human_bytes(made.pinned_bytes)}, for {human_seconds(seconds)}"
    )

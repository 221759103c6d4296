"""`kvtier pin`: keep blocks from eviction."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.duration import seconds_of
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.prefix import Prefix, takes_a_prefix
from kvtier.cli.text import human_bytes, human_seconds, plural


@takes_a_prefix
def pin(
    namespace: NamespaceArgument,
    prefix: Prefix,
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long: 90s, 30m, 1h, 7d.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; `kvtier pins` shows it.")] = "",
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
    prefix.required()
    with admin(address, timeout_seconds) as client:
        named = prefix.find(client, namespace)
        made = client.create_pin(
            named.namespace,
            named.hashes,
            seconds,
            reason=reason,
            group=named.group,
            shard=named.shard,
            timeout_seconds=timeout_seconds,
        )
    if as_json:
        print_json(as_document(made))
        return
    typer.echo(
        f"pin {made.pin_id}: {made.block_count:,} of {plural(len(set(named.hashes)), 'block')}, "
        f"{human_bytes(made.pinned_bytes)}, for {human_seconds(seconds)}"
    )

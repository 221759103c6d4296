"""`kvtier events`: which blocks come to a tier, and which leave it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
)
from kvtier.cli.text import plural

if TYPE_CHECKING:
    from kvtier.v1.cache_events_pb2 import WatchEventsResponse

#: Digits of a hash on a line.
_SHOWN: Final = 16


def events(
    namespace: NamespaceArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="What changes from now on, until interrupted.")
    ] = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="What there is; without --follow, nothing else.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Show which blocks are in which tier, and how that changes.

    Without options it shows what there is, and ends. Each line is one run of blocks: what happened,
    the tier, how many, where in their sequence, and the first hash. With --json each line is one
    message, as routers get it.

    Example: kvtier events default/my-model --follow --snapshot
    """
    from kvtier.v1.cache_events_pb2 import WatchEventsRequest

    with_snapshot = snapshot or not follow
    request = WatchEventsRequest(namespace=namespace, snapshot=with_snapshot)
    with (
        admin(address, DEFAULT_TIMEOUT_SECONDS) as client,
        suppress(KeyboardInterrupt),
        closing(client.watch_events(request)) as messages,
    ):
        for message in messages:
            _show(message, as_json=as_json)
            if message.snapshot_done and not follow:
                break


def _show(message: WatchEventsResponse, *, as_json: bool) -> None:
    if as_json:
        print_json(as_document(message))
        return
    for line in lines(message):
        typer.echo(line)


def lines(message: WatchEventsResponse) -> Iterable[str]:
    """One for each event."""
    from kvtier.v1.block_pb2 import Tier

    for event in message.events:
        is_stored = event.HasField("blocks_stored")
        change = event.blocks_stored if is_stored else event.blocks_removed
        keys = change.keys
        count = len(keys.hashes) // keys.hash_bytes
        place = f" from position {keys.position}" if is_stored else ""
        lane = f" of group {keys.group} shard {keys.shard}" if keys.group or keys.shard else ""
        tier = Tier.Name(change.tier).removeprefix("TIER_")
        yield (
            f"{'stored ' if is_stored else 'removed'} {tier:<4}  {plural(count, 'block')}{lane}"
            f"{place}: {keys.hashes[: keys.hash_bytes].hex()[:_SHOWN]} ..."
        )

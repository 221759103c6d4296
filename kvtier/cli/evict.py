"""`kvtier evict`: remove blocks now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import EvictBlocksResponse


def evict(
    namespace: Annotated[
        str, typer.Argument(metavar="NAMESPACE", help="tenant/name, or tenant/name@digest.")
    ],
    hashes: Annotated[
        list[str] | None,
        typer.Option(
            "--hash",
            metavar="HEX",
            help="This block and what continues it; may be repeated. Without: every block.",
        ),
    ] = None,
    group: Annotated[int, typer.Option(min=0, help="Of --hash: the KV group.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="Of --hash: the shard.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Remove blocks of a namespace.

    Blocks that are leased are no longer found; their space is free when their leases end.
    """
    keys = _parsed(hashes or [])
    with admin(address, timeout_seconds) as client:
        evict_blocks = partial(client.evict_blocks, namespace, keys, group, shard)
        if dry_run:
            answer = evict_blocks(validate_only=True)
        else:
            if not yes:
                planned = _counted(evict_blocks(validate_only=True))
                typer.confirm(f"Evict {planned} of {namespace}?", abort=True, err=True)
            answer = evict_blocks(validate_only=False)
    if as_json:
        print_json(as_document(answer))
    else:
        typer.echo(f"{'would evict' if dry_run else 'evicted'} {_counted(answer)} of {namespace}")


def _parsed(hashes: list[str]) -> list[bytes]:
    try:
        keys = [bytes.fromhex(text) for text in hashes]
    except ValueError as error:
        raise typer.BadParameter("write hashes in hexadecimal", param_hint="--hash") from error
    if len({len(key) for key in keys}) > 1:
        raise typer.BadParameter("all hashes must have one length", param_hint="--hash")
    return keys


def _counted(answer: EvictBlocksResponse) -> str:
    count = answer.evicted_count + answer.deferred_count
    blocks = f"{count:,} block{'' if count == 1 else 's'}"
    if answer.deferred_count:
        return f"{blocks} ({answer.deferred_count:,} of them when their leases end)"
    return blocks

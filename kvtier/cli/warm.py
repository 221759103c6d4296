"""`kvtier warm`: bring blocks to HOST ahead of use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.evict import parsed
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.text import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import WarmPrefixResponse

_POLL_SECONDS: Final = 0.1


def warm(
    namespace: NamespaceArgument,
    hashes: Annotated[
        list[str],
        typer.Argument(
            metavar="HASH...", help="Hashes of the blocks of a prefix, in hexadecimal, in order."
        ),
    ],
    group: Annotated[int, typer.Option(min=0, help="The KV group.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="The shard.")] = 0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until all that were accepted are in HOST.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_LONG_TIMEOUT_SECONDS,
) -> None:
    """Bring the blocks of a prefix from slower tiers to HOST.

    Accepted are the leading ones that are in HOST or on their way there; what is not cached, or
    beyond the budget of prefetches (see `prefetch` in the configuration), is not. They give way to
    loads, and to blocks that are worth more.

    With --wait it fails if they are not there within --timeout.

    Example: kvtier warm default/my-model 5f0c9c0e3a7d41aa8c1b1d2e3f405162 --wait
    """
    keys = parsed(hashes, "HASH")
    deadline = time.monotonic() + timeout_seconds
    with admin(address, timeout_seconds) as client:
        first = answer = client.warm(namespace, keys, group, shard)
        if wait:
            answer = _waited(client, namespace, keys, group, shard, first, deadline)
    if as_json:
        print_json({**as_document(answer), "accepted_count": first.accepted_count})
    else:
        typer.echo(
            f"{first.accepted_count:,} of {plural(len(keys), 'block')} accepted, "
            f"{answer.ready_count:,} in HOST"
        )
    if wait and answer.ready_count < first.accepted_count:
        raise typer.Exit(ExitCode.FAILED)


def _waited(
    client: AdminClient,
    namespace: str,
    keys: Sequence[bytes],
    group: int,
    shard: int,
    first: WarmPrefixResponse,
    deadline: float,
) -> WarmPrefixResponse:
    """The last answer; what did not come is asked for again."""
    answer = first
    while answer.ready_count < first.accepted_count and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        answer = client.warm(namespace, keys[: first.accepted_count], group, shard)
    return answer

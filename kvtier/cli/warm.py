"""`kvtier warm`: bring blocks to HOST ahead of use."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.prefix import NamedBlocks, Prefix, takes_a_prefix
from kvtier.cli.text import plural

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import WarmPrefixResponse

_POLL_SECONDS: Final = 0.1


@takes_a_prefix
def warm(
    namespace: NamespaceArgument,
    prefix: Prefix,
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
    prefix.required()
    deadline = time.monotonic() + timeout_seconds
    with admin(address, timeout_seconds) as client:
        named = prefix.find(client, namespace)
        first = answer = _ask(client, named)
        if wait:
            answer = _waited(client, named, first, deadline)
    if as_json:
        print_json({**as_document(answer), "accepted_count": first.accepted_count})
    else:
        typer.echo(
            f"{first.accepted_count:,} of {plural(len(named.hashes), 'block')} accepted, "
            f"{answer.ready_count:,} in HOST"
        )
    if wait and answer.ready_count < first.accepted_count:
        raise typer.Exit(ExitCode.FAILED)


def _ask(client: AdminClient, named: NamedBlocks) -> WarmPrefixResponse:
    return client.warm(named.namespace, named.hashes, named.group, named.shard)


def _waited(
    client: AdminClient, named: NamedBlocks, first: WarmPrefixResponse, deadline: float
) -> WarmPrefixResponse:
    """The last answer; what did not come is asked for again."""
    answer, accepted = first, replace(named, hashes=named.hashes[: first.accepted_count])
    while answer.ready_count < first.accepted_count and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        answer = _ask(client, accepted)
    return answer

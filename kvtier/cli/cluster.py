"""`kvtier cluster`: the agents that share the CLUSTER tier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

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
from kvtier.cli.text import console, human_bytes, human_seconds, percent, table
from kvtier.v1 import block_pb2

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import Node

app = typer.Typer(help="See the agents that share the CLUSTER tier.", no_args_is_help=True)

_COLUMNS = ("node", "name", "seen", "namespaces", "HOST", "DISK")


@app.command("nodes")
def nodes(
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the agents that share the CLUSTER tier.

    As they announced themselves on the Redis or Valkey. The agent that is asked has a star. Seen is
    how long ago a node's last announcement is; after three heartbeats without one it is not listed.
    HOST and DISK are the capacities, and how much of them is used. With --json also addresses and
    generation ids: nodes share the blocks of a namespace when theirs are the same.

    Example: kvtier cluster nodes --json
    """
    with admin(address, timeout_seconds) as client:
        found = client.nodes()
    if as_json:
        print_json({"nodes": [as_document(node) for node in found]})
        return
    if not found:
        console().print("no nodes: this agent has not announced itself yet")
        return
    now = datetime.now(UTC)
    out = console()
    out.print(table(_COLUMNS, (row(node, now) for node in found), left=2))
    for line in versions(found):
        out.print(line)


def row(node: Node, now: datetime) -> tuple[str, ...]:
    """The cells of one line of the table."""
    age = now - node.last_seen_time.ToDatetime(tzinfo=UTC)
    return (
        node.node_id,
        f"{node.name}{' *' if node.is_self else ''}",
        f"{human_seconds(max(0.0, age.total_seconds()))} ago",
        f"{len(node.namespaces):,}",
        _used(node, block_pb2.TIER_HOST),
        _used(node, block_pb2.TIER_DISK),
    )


def _used(node: Node, tier: int) -> str:
    """`-` for a tier that the node has not."""
    for each in node.tiers:
        if each.tier == tier:
            share = percent(each.used_bytes, each.capacity_bytes)
            return f"{human_bytes(each.capacity_bytes)}, {share}"
    return "-"


def versions(found: Sequence[Node]) -> Iterator[str]:
    """What the nodes run, or a line for each version if they do not run the same."""
    by_version: dict[str, list[str]] = {}
    for node in found:
        by_version.setdefault(node.version, []).append(node.name)
    for version, names in by_version.items():
        whose = "all" if len(by_version) == 1 else ", ".join(names)
        yield f"kvtier {version}: {whose}"

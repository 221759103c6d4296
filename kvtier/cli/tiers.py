"""`kvtier tiers`: the tiers of an agent, one a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)
from kvtier.cli.text import console, human_bytes, table
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import TierStats

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = ("tier", "state", "capacity", "allocated", "used", "blocks", "policy", "admission")


def tiers(
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the tiers, the fastest first: their state, size and blocks.

    Allocated is what a tier takes from the machine, whether blocks use it or not; a tier that has
    more than its capacity is shrinking. Of CLUSTER, the servers say it, for all that share them.

    GPU has a line for each device.

    With --json an object for each tier as in `kvtier stats --json`.

    Example: kvtier tiers
    """
    with admin(address, timeout_seconds) as client:
        found = list(client.get_stats().tiers)
    if as_json:
        print_json({"tiers": [as_document(tier) for tier in found]})
        return
    out = console()
    out.print(table(_COLUMNS, map(row, found), left=2))
    for line in remarks(found):
        out.print(line)


def name_of(tier: TierStats) -> str:
    """As people write it: `HOST`, `GPU cpu (emulated)`."""
    name = block_pb2.Tier.Name(tier.tier).removeprefix("TIER_")
    return f"{name} {tier.device}" if tier.device else name


def is_shrinking(tier: TierStats) -> bool:
    """Whether it has more than it may have; CLUSTER is not ours to shrink."""
    return tier.tier != block_pb2.TIER_CLUSTER and tier.allocated_bytes > tier.capacity_bytes


def row(tier: TierStats) -> tuple[str, ...]:
    """The cells of one line of the table."""
    is_cluster = tier.tier == block_pb2.TIER_CLUSTER
    return (
        name_of(tier),
        TierStats.State.Name(tier.state).lower(),
        human_bytes(tier.capacity_bytes) if tier.capacity_bytes else "-",
        "-" if is_cluster else human_bytes(tier.allocated_bytes),
        human_bytes(tier.used_bytes),
        "-" if is_cluster else f"{tier.block_count:,}",
        tier.policy or "-",
        tier.admission or "-",
    )


def remarks(found: list[TierStats]) -> Iterator[str]:
    """What is not as it should be."""
    for tier in found:
        if is_shrinking(tier):
            excess = tier.allocated_bytes - tier.capacity_bytes
            yield f"{name_of(tier)} is shrinking: {human_bytes(excess)} more than its capacity"
        if tier.reason:
            yield f"{name_of(tier)} is {TierStats.State.Name(tier.state).lower()}: {tier.reason}"

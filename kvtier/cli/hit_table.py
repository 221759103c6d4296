"""Outcomes of replays as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvtier.cli.text import human_bytes, human_seconds, number, percent, table

if TYPE_CHECKING:
    from rich.table import Table

    from kvtier.sim.outcome import Outcome


def hit_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each; columns of what is not known of any are left out."""
    rows = [dict(_cells(each)) for each in outcomes]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return table(columns, ([row.get(each, "-") for each in columns] for row in rows), left=2)


def _cells(each: Outcome) -> Iterator[tuple[str, str]]:
    yield "trace", each.trace
    yield "policy", each.policy if each.disk_policy is None else f"{each.policy}/{each.disk_policy}"
    yield "capacity", f"{100 * each.capacity_fraction:.3g} %"
    yield "blocks", number(each.capacity_blocks)
    if each.capacity_bytes is not None:
        yield "size", human_bytes(each.capacity_bytes)
    yield "block hits", percent(each.hit_blocks, each.requested_blocks)
    yield "token hits", percent(each.hit_tokens, each.requested_tokens)
    for tier in each.tiers if len(each.tiers) > 1 else ():
        yield f"from {tier.tier.upper()}", percent(tier.hit_blocks, each.requested_blocks)
    for tier in each.tiers:
        name = f" {tier.tier.upper()}" if len(each.tiers) > 1 else ""
        yield f"read{name}", _moved(tier.read_blocks, tier.read_bytes)
        yield f"written{name}", _moved(tier.written_blocks, tier.written_bytes)
    if each.written_bytes_per_day is not None:
        yield "written a day", human_bytes(round(each.written_bytes_per_day))
    elif each.written_blocks_per_day is not None:
        yield "written a day", number(round(each.written_blocks_per_day))
    if each.saved_seconds is not None and each.saved_seconds_per_request is not None:
        yield "prefill saved", human_seconds(each.saved_seconds)
        yield "a request", f"{each.saved_seconds_per_request:.3g} s"


def _moved(blocks: int, size_bytes: int | None) -> str:
    return number(blocks) if size_bytes is None else human_bytes(size_bytes)

"""Outcomes of replays as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvtier.cli.text import human_bytes, human_seconds, number, percent, table

if TYPE_CHECKING:
    from rich.table import Table

    from kvtier.sim.outcome import Outcome


def hit_tables(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Table]]:
    """For each trace its name and a table; columns of what is not known are left out.

    Without costs it fits into 80 columns.
    """
    for trace in dict.fromkeys(each.trace for each in outcomes):
        rows = [dict(_cells(each)) for each in outcomes if each.trace == trace]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        yield trace, table(columns, ([row.get(each, "-") for each in columns] for row in rows))


def _cells(each: Outcome) -> Iterator[tuple[str, str]]:
    is_one = len(each.tiers) == 1
    yield "policy", each.policy if each.disk_policy is None else f"{each.policy}/{each.disk_policy}"
    yield "capacity", f"{100 * each.capacity_fraction:.3g} %"
    if each.capacity_bytes is None:
        yield "blocks", number(each.capacity_blocks)
    else:
        yield "size", human_bytes(each.capacity_bytes)
    yield "block hits", percent(each.hit_blocks, each.requested_blocks)
    yield "token hits", percent(each.hit_tokens, each.requested_tokens)
    for tier in () if is_one else each.tiers:
        yield f"from {tier.tier.upper()}", percent(tier.hit_blocks, each.requested_blocks)
        yield f"read {tier.tier.upper()}", _moved(tier.read_blocks, tier.read_bytes)
    for tier in each.tiers:
        name = "written" if is_one else f"written {tier.tier.upper()}"
        yield name, _moved(tier.written_blocks, tier.written_bytes)
    if each.written_bytes_per_day is not None:
        yield "a day", human_bytes(round(each.written_bytes_per_day))
    elif each.written_blocks_per_day is not None:
        yield "a day", number(round(each.written_blocks_per_day))
    if each.saved_seconds is not None and each.saved_seconds_per_request is not None:
        yield "saved", human_seconds(each.saved_seconds)
        yield "a request", f"{each.saved_seconds_per_request:.3g} s"


def _moved(blocks: int, size_bytes: int | None) -> str:
    return number(blocks) if size_bytes is None else human_bytes(size_bytes)

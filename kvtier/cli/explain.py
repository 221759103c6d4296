"""`kvtier explain`: why blocks are here, or why they missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.prefix import Prefix, takes_a_prefix
from kvtier.cli.text import console, human_bytes, plural, table
from kvtier.v1.block_pb2 import Tier
from kvtier.v1.cache_admin_pb2 import ExplainBlocksResponse, Explanation, Stats

_BATCH: Final = 4096


@takes_a_prefix
def explain(
    namespace: NamespaceArgument,
    prefix: Prefix,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Say for each block where it is, or why it is not here.

    A block that is in no tier was evicted (by which policy, and for what), not admitted, damaged,
    expired, removed on request, never stored, or is stored under another layout of the same name.
    That comes from a history of bounded size (history.blocks): what happened before is forgotten.

    Tokens are hashed as the namespace's workers hash them, if that is kvtier's own way or vLLM's.

    Example: kvtier explain default/my-model --tokens prompt.json
    """
    prefix.required()
    with admin(address, timeout_seconds) as client:
        named = prefix.find(client, namespace)
        keys = named.hashes
        found: list[Explanation] = []
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            answer = client.explain_blocks(named.namespace, part, named.group, named.shard)
            found.extend(answer.explanations)
    if as_json:
        blocks = [
            {"hash": key.hex(), **as_document(each)} for key, each in zip(keys, found, strict=True)
        ]
        print_json({"blocks": blocks, "history": as_document(answer.history)})
        return
    out = console()
    step = named.block_tokens
    out.print(summary(found, step))
    columns = ("blocks", *(("tokens",) if step else ()), "fate", "where", "when", "why")
    out.print(table(columns, rows(found, step, named.first), left=len(columns)))
    out.print(reach(answer))


def summary(found: Sequence[Explanation], block_tokens: int) -> str:
    """How much of the beginning would be found."""
    cached = [each.fate == Explanation.CACHED for each in found]
    leading = [*cached, False].index(False)
    text = f"{leading:,} leading of {plural(len(found), 'block')} are here"
    if block_tokens:
        text += f" ({leading * block_tokens:,} of {len(found) * block_tokens:,} tokens)"
    if sum(cached) > leading:
        text += f", and {sum(cached) - leading:,} behind the first gap"
    return text


def rows(
    found: Sequence[Explanation], block_tokens: int = 0, first: int = 0
) -> Iterator[tuple[str, ...]]:
    """A row for each run of blocks with the same fate; `first` is the index of the first one."""
    start = first
    for fate, group in groupby(found, key=_fate):
        run = list(group)
        stop = start + len(run)
        tokens = (_range(start * block_tokens, stop * block_tokens),) if block_tokens else ()
        yield (_range(start, stop), *tokens, *fate[:2], _times(run), fate[2])
        start = stop


def _range(start: int, stop: int) -> str:
    return f"{start:,}" if stop == start + 1 else f"{start:,} to {stop - 1:,}"


def _fate(each: Explanation) -> tuple[str, str, str]:
    """What blocks of one run have in common: fate, where, and why."""
    fate = Explanation.Fate.Name(each.fate).lower().replace("_", " ")
    where = ", ".join(_tier(tier) for tier in each.tiers)
    if each.left_tier:
        where = (
            f"not in {_tier(each.left_tier)}"
            if _never_in(each)
            else f"was in {_tier(each.left_tier)}"
        )
    why = [each.reason] if each.reason else []
    if each.layout_differences:
        why.append(f"differs in {', '.join(each.layout_differences)}")
    why += ["leased"] * (each.lease_count > 0) + ["pinned"] * each.is_pinned
    return fate, where or "-", "; ".join(why) or "-"


def _never_in(each: Explanation) -> bool:
    return each.fate == Explanation.NOT_ADMITTED


def _tier(tier: Tier) -> str:
    return Tier.Name(tier).removeprefix("TIER_")


def _times(run: Sequence[Explanation]) -> str:
    """From the earliest to the latest; `-` for what has none."""
    times = sorted(each.time.ToNanoseconds() // 10**9 for each in run if each.HasField("time"))
    if not times:
        return "-"
    first, last = (datetime.fromtimestamp(each) for each in (times[0], times[-1]))
    text = f"{first:%Y-%m-%d %H:%M:%S}"
    return text if first == last else f"{text} to {last:%H:%M:%S}"


def reach(answer: ExplainBlocksResponse | Stats) -> str:
    """What the answers that are not `cached` rest on."""
    history = answer.history
    if not answer.HasField("history"):
        return "history: shown to those who see all namespaces"
    if not history.capacity:
        return "history: off"
    return (
        f"history: {history.entry_count:,} of {plural(history.capacity, 'block')}, "
        f"{human_bytes(history.memory_bytes)}"
    )

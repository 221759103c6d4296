"""`kvtier explain`: why blocks are here, or why they missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.evict import parsed
from kvtier.cli.namespaces import is_selected, label
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.text import console, human_bytes, plural, table
from kvtier.errors import InvalidRequestError, NotFoundError
from kvtier.v1.block_pb2 import Tier
from kvtier.v1.cache_admin_pb2 import Explanation, HistoryStats

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.block_pb2 import NamespaceSpec

_BATCH: Final = 4096


def explain(
    namespace: NamespaceArgument,
    hashes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HASH]...", help="Block hashes in hexadecimal.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="Instead of hashes, token ids: a JSON list, or numbers; - for standard input.",
        ),
    ] = None,
    block_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of --tokens: tokens of a block; else as the namespace says."),
    ] = None,
    extra: Annotated[
        str, typer.Option(help="Of --tokens: what kvtier's own hashes were given as extra.")
    ] = "",
    hash_seed: Annotated[
        str | None,
        typer.Option(help="Of --tokens: the PYTHONHASHSEED of a vLLM that was started with one."),
    ] = None,
    group: Annotated[int, typer.Option(min=0, help="The KV group.")] = 0,
    shard: Annotated[int, typer.Option(min=0, help="The shard.")] = 0,
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
    if bool(hashes) == (tokens is not None):
        raise InvalidRequestError("give either hashes or --tokens")
    with admin(address, timeout_seconds) as client:
        keys = parsed(hashes or [], "HASH")
        if tokens is not None:
            spec = _spec(client, namespace)
            block_tokens = block_tokens or spec.block_tokens
            keys = _hashed(tokens, spec, block_tokens, extra, hash_seed)
        found: list[Explanation] = []
        for start in range(0, len(keys), _BATCH):
            answer = client.explain_blocks(namespace, keys[start : start + _BATCH], group, shard)
            found.extend(answer.explanations)
    if as_json:
        blocks = [
            {"hash": key.hex(), **as_document(each)} for key, each in zip(keys, found, strict=True)
        ]
        print_json({"blocks": blocks, "history": as_document(answer.history)})
        return
    out = console()
    step = block_tokens if tokens is not None and block_tokens else 0
    out.print(summary(found, step))
    columns = ("blocks", *(("tokens",) if step else ()), "fate", "where", "when", "why")
    out.print(table(columns, rows(found, step), left=len(columns)))
    out.print(reach(answer.history))


def _spec(client: AdminClient, selector: str) -> NamespaceSpec:
    chosen = [info for info in client.list_namespaces() if is_selected(info, selector)]
    if not chosen:
        raise NotFoundError(f"no namespace {selector!r}: see `kvtier namespaces`")
    if len(chosen) > 1:
        labels = ", ".join(map(label, chosen))
        raise InvalidRequestError(f"{selector!r} has {len(chosen)} layouts; choose one of {labels}")
    return chosen[0].spec


def _hashed(
    path: str, spec: NamespaceSpec, block_tokens: int, extra: str, hash_seed: str | None
) -> list[bytes]:
    from kvtier.cli.token_hashes import hashes_of, read_tokens

    if not block_tokens:
        raise InvalidRequestError("--block-tokens is missing: the namespace does not say")
    tokens = read_tokens(path)
    if len(tokens) < block_tokens:
        raise InvalidRequestError(
            f"--tokens {path}: {plural(len(tokens), 'token')}, and a block has {block_tokens}: "
            "only full blocks are cached"
        )
    return hashes_of(spec, tokens, block_tokens, extra, hash_seed)


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


def rows(found: Sequence[Explanation], block_tokens: int = 0) -> Iterator[tuple[str, ...]]:
    """A row for each run of blocks with the same fate."""
    start = 0
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


def reach(history: HistoryStats) -> str:
    """What the answers that are not `cached` rest on."""
    if not history.capacity:
        return "history: off"
    return (
        f"history: {history.entry_count:,} of {plural(history.capacity, 'block')}, "
        f"{human_bytes(history.memory_bytes)}"
    )

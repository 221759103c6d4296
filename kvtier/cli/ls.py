"""`kvtier ls`: the blocks of a namespace, or its prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.duration import seconds_of
from kvtier.cli.namespaces import chosen_namespace
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
)
from kvtier.cli.prefix import Prefix, takes_a_prefix
from kvtier.cli.text import console, human_bytes, human_seconds, plural, table
from kvtier.v1.block_pb2 import Tier
from kvtier.v1.cache_admin_pb2 import ListBlocksRequest, ListedBlock

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import NamespaceInfo

_PAGE: Final = 1000
_SHORT_DIGITS: Final = 16
_WIDE: Final = 240


class ListedTierName(StrEnum):
    """Tiers that keep a list of their blocks."""

    HOST = "host"
    DISK = "disk"


class SortName(StrEnum):
    """What blocks are sorted by."""

    TABLE = "table"
    AGE = "age"
    HITS = "hits"
    SIZE = "size"
    POSITION = "position"


@takes_a_prefix
def ls(
    namespace: NamespaceArgument,
    prefix: Prefix,
    ends_only: Annotated[
        bool,
        typer.Option("--prefixes", help="One row for each prefix: its last block, and its length."),
    ] = False,
    tiers: Annotated[
        list[ListedTierName] | None, typer.Option("--tier", help="Only in this tier.")
    ] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Only what is pinned.")] = False,
    leased: Annotated[
        bool, typer.Option("--leased", help="Only what leases, holds or calls use now.")
    ] = False,
    older_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what was stored longer ago: 90s, 2h.")
    ] = None,
    sort: Annotated[
        SortName, typer.Option("--sort", help="The greatest first; table: as they lie.")
    ] = SortName.TABLE,
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort the least first.")] = False,
    limit: Annotated[
        int, typer.Option(min=0, metavar="COUNT", help="Rows at most; 0 for all.")
    ] = 100,
    page: Annotated[
        str, typer.Option(metavar="TOKEN", help="Go on where an earlier listing ended.")
    ] = "",
    full: Annotated[
        bool, typer.Option("--full", help="Whole hashes in a terminal too, as commands take them.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the blocks of a namespace, or its prefixes.

    Of HOST and DISK; CLUSTER keeps no list of what it has. A block has a row for each tier that has
    it. Its age counts from its first store, hits from when it came to the tier: loads, and what
    workers say they used. A row of --prefixes has the length and the size of all that it ends,
    which prefixes with the same beginning share.

    What comes or goes while pages are read may be listed or not; all else is listed once.

    Example: kvtier ls default/my-model --prefixes --tier host --sort hits --limit 20
    """
    with admin(address, timeout_seconds) as client:
        info = chosen_namespace(client, namespace)
        request = ListBlocksRequest(
            namespace=namespace,
            tiers=[f"TIER_{each.name}" for each in tiers or ()],
            ends_only=ends_only,
            pinned_only=pinned,
            leased_only=leased,
            order=sort.name,
            descending=sort is not SortName.TABLE and not reverse,
            page_token=page,
        )
        if older_than is not None:
            request.min_age.FromNanoseconds(int(seconds_of(older_than, "--older-than") * 1e9))
        if prefix.is_given:
            named = prefix.find(client, namespace)
            request.namespace = named.namespace
            request.keys.hash_bytes, request.keys.hashes = (
                len(named.hashes[0]),
                b"".join(named.hashes),
            )
            request.keys.group, request.keys.shard = named.group, named.shard
        found, token = _listed(client, request, limit)
    if as_json:
        blocks = [as_document(each) for each in found]
        print_json({"blocks": blocks, "next_page_token": token})
        return
    out = console()
    if not found:
        out.print("no such blocks" if not token else "none yet")
    else:
        digits = None if full or not out.is_terminal else _SHORT_DIGITS
        if full:  # what is to be copied stays in one piece
            out.width = max(out.width, _WIDE)
        drawn = rows(found, info, ends_only=ends_only, digits=digits)
        out.print(table(next(drawn), drawn, left=3))
    what = "prefix" if ends_only else "block"
    if token:
        out.print(f"{_counted(len(found), what)}, and more: --page={token}", soft_wrap=True)
    elif found:
        out.print(_counted(len(found), what))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} prefixes" if noun == "prefix" and count != 1 else plural(count, noun)


def _listed(
    client: AdminClient, request: ListBlocksRequest, limit: int
) -> tuple[list[ListedBlock], str]:
    """Up to so many, and the token of what follows; 0 is all."""
    found: list[ListedBlock] = []
    while True:
        request.page_size = min(_PAGE, limit - len(found)) if limit else _PAGE
        answer = client.list_blocks(request)
        found.extend(answer.blocks)
        request.page_token = answer.next_page_token
        if not answer.next_page_token or (limit and len(found) >= limit):
            return found, answer.next_page_token


def rows(
    found: list[ListedBlock], info: NamespaceInfo, *, ends_only: bool, digits: int | None
) -> Iterator[tuple[str, ...]]:
    """The heading, then the cells of each line. Lanes are shown where there are several."""
    spec = info.spec
    has_lanes = len(spec.block_bytes) > 1 or spec.shards > 1
    lane = ("lane",) if has_lanes else ()
    length = ("blocks", "tokens") if ends_only else ("position",)
    what = "ends with" if ends_only else "block"
    yield (what, "tier", "also", *lane, *length, "size", "age", "hits", "state")
    for each in found:
        blocks = each.position + 1
        lengths = (
            (f"{blocks:,}", f"{blocks * spec.block_tokens:,}")
            if ends_only
            else (f"{each.position:,}",)
        )
        yield (
            _short(each.block_hash.hex(), digits),
            _name(each.tier),
            ", ".join(map(_name, each.other_tiers)) or "-",
            *((f"{each.group}.{each.shard}",) if has_lanes else ()),
            *lengths,
            human_bytes(each.slot_bytes * (blocks if ends_only else 1)),
            human_seconds(each.age.seconds) if each.HasField("age") else "-",
            f"{each.hit_count:,}",
            ", ".join(["pinned"] * each.is_pinned + ["leased"] * each.is_leased) or "-",
        )


def _short(text: str, digits: int | None) -> str:
    return text if digits is None or len(text) <= digits else f"{text[:digits]}…"


def _name(tier: Tier) -> str:
    return Tier.Name(tier).removeprefix("TIER_")

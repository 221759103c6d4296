"""`kvtier requests`: what engines asked for of late."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceOption,
    TimeoutOption,
)
from kvtier.cli.text import console, human_bytes, human_seconds, percent, plural, table
from kvtier.v1.block_pb2 import Tier

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import ListRequestsResponse, SeenRequest

_PAGE = 1000
_COLUMNS = ("request", "ago", "in engine", "asked", "found", "rate", "where")


def requests(
    namespace: NamespaceOption = "",
    limit: Annotated[
        int, typer.Option(min=0, metavar="COUNT", help="The latest so many; 0 for all.")
    ] = 20,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List what requests asked for of late, and what was found.

    Only requests that their workers name: vLLM's connector does, and what passes request_id to
    kvtier's client. Blocks count for all KV groups together, as of the last lookup; those that the
    engine had itself were not asked for. `--request ID` names a request's blocks in explain, ls,
    pin, warm and evict. history.requests says how many are kept.

    Example: kvtier requests --namespace default/my-model --limit 50
    """
    with admin(address, timeout_seconds) as client:
        found, last = _listed(client, namespace, limit)
    if as_json:
        print_json(
            {
                "requests": [as_document(each) for each in found],
                "capacity": last.capacity,
                "memory_bytes": last.memory_bytes,
            }
        )
        return
    out = console()
    if not last.capacity:
        out.print("no requests are kept: history.requests is 0")
        return
    if not found:
        out.print("no requests: no worker has named one in a lookup")
        return
    now = datetime.now(UTC)
    for label in dict.fromkeys(each.namespace for each in found):
        mine = [each for each in found if each.namespace == label]
        out.print(label)
        out.print(table(_COLUMNS, (row(each, now) for each in mine)))
    out.print(
        f"the last {plural(last.capacity, 'request')} are kept, "
        f"{human_bytes(last.memory_bytes)} now"
    )


def _listed(
    client: AdminClient, namespace: str, limit: int
) -> tuple[list[SeenRequest], ListRequestsResponse]:
    """Up to so many, and the last page."""
    found: list[SeenRequest] = []
    token = ""
    while True:
        size = min(_PAGE, limit - len(found)) if limit else _PAGE
        answer = client.list_requests(namespace, size, token)
        found.extend(answer.requests)
        token = answer.next_page_token
        if not token or (limit and len(found) >= limit):
            return found, answer


def row(seen: SeenRequest, now: datetime) -> tuple[str, ...]:
    """The cells of one line of the table."""
    age = now - seen.time.ToDatetime(tzinfo=UTC)
    asked = sum(each.block_count for each in seen.lookups)
    found = sum(each.found_count for each in seen.lookups)
    return (
        seen.request_id,
        human_seconds(max(0.0, age.total_seconds())),
        f"{sum(each.keys.position for each in seen.lookups):,}",
        f"{asked:,}",
        f"{found:,}",
        percent(found, asked),
        _where([each.tier_counts for each in seen.lookups]),
    )


def _where(lookups: Sequence[Sequence[int]]) -> str:
    """`HOST 12, DISK 3`."""
    sums = [sum(counts) for counts in zip(*lookups, strict=True)]
    names = [Tier.Name(number).removeprefix("TIER_") for number in Tier.values() if number]
    return (
        ", ".join(f"{name} {count:,}" for name, count in zip(names, sums, strict=True) if count)
        or "-"
    )

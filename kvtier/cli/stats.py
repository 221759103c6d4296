"""`kvtier stats`: what each tier holds and how it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.explain import reach
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceOption,
    TimeoutOption,
)
from kvtier.cli.text import (
    console,
    human_bytes,
    human_seconds,
    milliseconds,
    percent,
    plural,
    table,
)
from kvtier.cli.tiers import name_of
from kvtier.cli.troubles import of_stats
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import Stats, TierStats

if TYPE_CHECKING:
    from rich.console import Console, Group

    from kvtier.client.admin import AdminClient

#: What servers do not say, or do for all that share them.
_NOT_OF_CLUSTER = (
    "allocated",
    "leased",
    "pinned",
    "quarantined",
    "blocks",
    "refused",
    "evicted",
    "expired",
    "lost before load",
)


_OF_HOST = ("prefetched", "prefetch used", "prefetch wasted")


def stats(
    as_json: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on, once a second, until interrupted or the agent is gone.",
        ),
    ] = False,
    namespace: NamespaceOption = "",
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show what each tier holds, and how it serves.

    What is wrong is named first, the worst at the top; `kvtier doctor` says what to do about it.

    Allocated is memory taken from the machine, whether blocks use it or not.

    Rejected calls came when too much was in flight: see `limits` in the configuration.

    Leased are slots that somebody refers to, the pinned ones among them.

    Quarantined are slots that a stalled or vanished worker may still write to.

    Refused are blocks that found no room, or not within their session's share.

    Looked up and found are blocks that workers asked for; lost before load are those that were
    gone when a worker came to load them.

    GPU has a column for each device. Its blocks are copies of what HOST has: stored are those that
    came, loaded those that workers on the device read there.

    Prefetched are blocks that were brought to HOST ahead of use: of those, used ones were loaded
    later, wasted ones evicted before.

    Of a tier below HOST: promoted are blocks that were copied up into HOST, demoted those that were
    written here, left unwritten those that left HOST before they were. To be written are the bytes
    that wait for that; read and written is what the device did, errors are its calls that failed.
    To read 1 MiB it takes so long, judged by what reads took of late.

    History is how many blocks there is still something to say of when they are gone: see
    `kvtier explain`.

    Of CLUSTER: used is what the servers say, for all that share them; the rest is this agent's own.

    Example: kvtier stats --watch --namespace default/my-model
    """
    with admin(address, timeout_seconds) as client:
        if watch:
            _watch(client, namespace, as_json)
        elif as_json:
            print_json(as_document(client.get_stats(namespace)))
        else:
            console().print(overview(client.get_stats(namespace)))


def _watch(client: AdminClient, namespace: str, as_json: bool) -> None:
    samples = client.watch_stats(namespace)
    try:
        if as_json:
            for sample in samples:
                print_json(as_document(sample))
        else:
            _redraw(samples, console())
    except KeyboardInterrupt:
        raise typer.Exit from None


def _redraw(samples: Iterator[Stats], out: Console) -> None:
    from rich.live import Live

    if not out.is_terminal:
        for sample in samples:
            out.print(overview(sample))
        return
    with Live(console=out, auto_refresh=False) as live:
        for sample in samples:
            live.update(overview(sample), refresh=True)


def overview(sample: Stats) -> Group:
    """A heading, and a column for each tier."""
    from rich.console import Group
    from rich.text import Text

    heading = (
        f"kvtier {sample.version}, epoch {sample.epoch:016x}, "
        f"up {human_seconds(sample.uptime.ToTimedelta().total_seconds())}\n"
        f"{plural(sample.namespace_count, 'namespace')}, "
        f"{plural(sample.session_count, 'session')}, "
        f"{plural(sample.lease_count, 'lease')}, {_refusals(sample)}"
    )
    troubles = [Text(trouble.text, style=trouble.weight.style) for trouble in of_stats(sample)]
    troubles += [
        Text(
            f"{name_of(tier)} chooses its capacity, {human_bytes(tier.auto_least_bytes)} to "
            f"{human_bytes(tier.auto_most_bytes)}, and has made it smaller "
            f"{plural(tier.auto_shrunk_count, 'time')}: {tier.auto_reason}"
        )
        for tier in sample.tiers
        if tier.auto_reason
    ]
    tiers = [_rows(tier) for tier in sample.tiers]
    longest = max(tiers, key=len, default={})
    rows = [(row, *(tier.get(row, "-") for tier in tiers)) for row in longest]
    drawn = table(("", *map(name_of, sample.tiers)), rows)
    return Group(heading, *troubles, drawn, reach(sample))


def _refusals(sample: Stats) -> str:
    """Calls, by what they wanted; what the agent put off itself is no call."""
    kinds = {
        "lookups and such": sample.refused_ask_count,
        "loads": sample.refused_load_count,
        "stores": sample.refused_store_count,
        "prefetches": sample.refused_prefetch_count,
    }
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    return f"{plural(sample.rejected_count, 'call')} rejected{named and f' ({named})'}"


def _state(tier: TierStats) -> str:
    return TierStats.State.Name(tier.state).lower()


def _rows(tier: TierStats) -> dict[str, str]:
    rows = _of_every_tier(tier)
    if tier.tier != block_pb2.TIER_HOST:
        rows |= dict.fromkeys(_OF_HOST, "-")
    if tier.tier > block_pb2.TIER_HOST:
        rows |= _of_a_lower_tier(tier)
    if tier.tier == block_pb2.TIER_CLUSTER:
        rows |= dict.fromkeys(_NOT_OF_CLUSTER, "-")
    return rows


def _of_a_lower_tier(tier: TierStats) -> dict[str, str]:
    return {
        "promoted": f"{tier.promoted_count:,}",
        "demoted": f"{tier.demoted_count:,}",
        "left unwritten": f"{tier.unwritten_count:,}",
        "to be written": human_bytes(tier.pending_bytes),
        "read": human_bytes(tier.read_bytes),
        "written": human_bytes(tier.written_bytes),
        "errors": f"{tier.error_count:,}",
        "to read 1 MiB": milliseconds(tier.read_seconds_per_mib),
    }


def _of_every_tier(tier: TierStats) -> dict[str, str]:
    return {
        "state": _state(tier),
        "capacity": human_bytes(tier.capacity_bytes) if tier.capacity_bytes else "-",
        "used": human_bytes(tier.used_bytes),
        "allocated": human_bytes(tier.allocated_bytes),
        "leased": human_bytes(tier.leased_bytes),
        "pinned": human_bytes(tier.pinned_bytes),
        "quarantined": human_bytes(tier.quarantined_bytes),
        "blocks": f"{tier.block_count:,}",
        "stored": f"{tier.stored_count:,}",
        "refused": f"{tier.refused_count:,}",
        "evicted": f"{tier.evicted_count:,}",
        "expired": f"{tier.expired_count:,}",
        "looked up": f"{tier.lookup_count:,}",
        "found": f"{tier.lookup_hit_count:,}",
        "found rate": percent(tier.lookup_hit_count, tier.lookup_count),
        "loaded": f"{tier.hit_count:,}",
        "lost before load": f"{tier.miss_count:,}",
        "prefetched": f"{tier.prefetched_count:,}",
        "prefetch used": f"{tier.prefetch_used_count:,}",
        "prefetch wasted": f"{tier.prefetch_wasted_count:,}",
        "corrupt": f"{tier.corrupt_count:,}",
        "queue": f"{tier.queue_depth:,}",
    }

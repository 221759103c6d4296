"""`kvtier evict`: remove blocks now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.consent import Consent, block_count, counted
from kvtier.cli.document import as_document, print_json
from kvtier.cli.duration import seconds_of
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    DryRunOption,
    JsonOption,
    NamespaceArgument,
    TierName,
    TimeoutOption,
    YesOption,
)
from kvtier.cli.prefix import NamedBlocks, Prefix, takes_a_prefix
from kvtier.cli.text import human_bytes, human_seconds, plural
from kvtier.core.block import Tier
from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtier.v1.cache_admin_pb2 import EvictBlocksResponse

_SIZED = {Tier.HOST, Tier.DISK}


@takes_a_prefix
def evict(
    namespace: NamespaceArgument,
    prefix: Prefix,
    tiers: Annotated[
        list[TierName] | None,
        typer.Option("--tier", help="Only from this tier; may be repeated. Without: from all."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only what was stored longer ago, such as 2h; HOST and DISK alone."
        ),
    ] = None,
    down_to: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What is coldest, until no more than this is used of --tier host or disk.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is pinned.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_LONG_TIMEOUT_SECONDS,
) -> None:
    """Remove blocks of a namespace.

    All of them, or those of a prefix with whatever continues them. Blocks that are leased are no
    longer found; their space is free when their leases end. Blocks that are pinned stay, unless
    --force is given. A block counts in each tier that held it. What goes from CLUSTER is gone for
    all nodes. Asks first; scripts pass --yes or --dry-run.

    With --older-than, what is younger stays, also behind a block that goes; CLUSTER keeps what it
    has until its own time to live. With --down-to, the tier's policy says what goes first; what is
    leased or pinned stays. Exit code 1 if the size was not reached. What HOST still has may be
    written to DISK again.

    Example: kvtier evict default/my-model --tier disk --older-than 2h --dry-run
    """
    chosen = [Tier[each.name] for each in tiers or ()]
    min_age = 0.0 if older_than is None else seconds_of(older_than, "--older-than")
    most_bytes = _size(down_to)
    _check(chosen, prefix, min_age, most_bytes, force=force)
    consent = Consent(namespace, is_given=dry_run or yes, as_json=as_json)
    with admin(address, timeout_seconds) as client:
        named = prefix.find(client, namespace) if prefix.is_given else NamedBlocks(namespace, [])
        evict_blocks = partial(
            client.evict_blocks,
            named.namespace,
            named.hashes,
            named.group,
            named.shard,
            chosen,
            force=force,
            min_age_seconds=min_age,
            down_to_bytes=most_bytes,
        )
        answer = evict_blocks(validate_only=not yes or dry_run)
        if not consent.is_given and block_count(answer):
            about = "about " if most_bytes is not None else ""
            which = _which(chosen, min_age, most_bytes)
            consent.ask(client, f"Evict {about}{counted(answer)}{which}{_left(answer)}, of")
            answer = evict_blocks(validate_only=False)
    if as_json:
        print_json(as_document(answer))
    else:
        for line in said(answer, namespace, chosen, min_age, most_bytes, dry_run=dry_run):
            typer.echo(line)
    if most_bytes is not None and not dry_run and answer.used_bytes > most_bytes:
        raise typer.Exit(ExitCode.FAILED)


def _size(text: str | None) -> int | None:
    from kvtier.config.size import parse_size

    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidRequestError(f"--down-to: {text!r} is {error}") from error


def _check(
    tiers: Sequence[Tier],
    prefix: Prefix,
    min_age: float,
    most_bytes: int | None,
    *,
    force: bool,
) -> None:
    """Raises InvalidRequestError for options that do not go together."""
    if min_age and Tier.CLUSTER in tiers:
        raise InvalidRequestError("--older-than: CLUSTER does not say how old its blocks are")
    if most_bytes is None:
        return
    if len(tiers) != 1 or tiers[0] not in _SIZED:
        raise InvalidRequestError("--down-to needs one tier: --tier host or --tier disk")
    if prefix.is_given or min_age or force:
        raise InvalidRequestError("--down-to goes with neither a prefix, --older-than nor --force")


def said(
    answer: EvictBlocksResponse,
    namespace: str,
    tiers: Sequence[Tier],
    min_age: float,
    most_bytes: int | None,
    *,
    dry_run: bool,
) -> list[str]:
    """What was done, or would be."""
    lines = [f"nothing to evict{_left(answer)}"]
    if block_count(answer):
        verb = "would evict" if dry_run else "evicted"
        about = " about" if dry_run and most_bytes is not None else ""
        what = f"{counted(answer)} of {namespace}{_which(tiers, min_age, None)}"
        lines = [f"{verb}{about} {what}{_left(answer)}"]
    if most_bytes is not None:
        line = f"{tiers[0].name}: {human_bytes(answer.used_bytes)} used"
        if answer.used_bytes > most_bytes and not dry_run:
            line += f", more than {human_bytes(most_bytes)}: the rest is leased, pinned, or needed"
            line += " by what is"
        lines.append(line)
    return lines


def _which(tiers: Sequence[Tier], min_age: float, most_bytes: int | None) -> str:
    """` from HOST stored over 2 h ago`, ` from HOST until 10.0 GiB are used`."""
    text = f" from {' and '.join(tier.name for tier in tiers)}" if tiers else ""
    text += f" stored over {human_seconds(min_age)} ago" if min_age else ""
    return text if most_bytes is None else f"{text} until {human_bytes(most_bytes)} are used"


def _left(answer: EvictBlocksResponse) -> str:
    """What is said of pinned blocks, if there are any."""
    count = answer.pinned_count
    return f"; {plural(count, 'block')} left, being pinned" if count else ""

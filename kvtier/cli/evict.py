"""`kvtier evict`: remove blocks now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.consent import Consent, block_count, counted
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    DryRunOption,
    JsonOption,
    NamespaceArgument,
    TierName,
    TimeoutOption,
    YesOption,
)
from kvtier.cli.text import plural
from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES, Tier
from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import EvictBlocksResponse


def evict(
    namespace: NamespaceArgument,
    hashes: Annotated[
        list[str] | None,
        typer.Option(
            "--hash",
            metavar="HEX",
            help="This block and what continues it; may be repeated. Without: every block.",
        ),
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=0, help="Of --hash: the KV group; else 0.")
    ] = None,
    shard: Annotated[int | None, typer.Option(min=0, help="Of --hash: the shard; else 0.")] = None,
    tiers: Annotated[
        list[TierName] | None,
        typer.Option("--tier", help="Only from this tier; may be repeated. Without: from all."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is pinned.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Remove blocks of a namespace.

    Blocks that are leased are no longer found; their space is free when their leases end.
    Blocks that are pinned stay, unless --force is given. A block counts in each tier that held it.
    Asks first; scripts pass --yes or --dry-run.

    Example: kvtier evict default/my-model --tier disk --dry-run
    """
    consent = Consent(namespace, is_given=dry_run or yes, as_json=as_json)
    keys = parsed(hashes or [])
    if not keys and (group is not None or shard is not None):
        raise InvalidRequestError(
            "--group and --shard go with --hash; "
            "without --hash every block of the namespace is evicted"
        )
    chosen = [Tier[each.name] for each in tiers or ()]
    with admin(address, timeout_seconds) as client:
        evict_blocks = partial(
            client.evict_blocks, namespace, keys, group or 0, shard or 0, chosen, force=force
        )
        answer = evict_blocks(validate_only=not yes or dry_run)
        if not consent.is_given and block_count(answer):
            consent.ask(client, f"Evict {counted(answer)} of")
            answer = evict_blocks(validate_only=False)
    if as_json:
        print_json(as_document(answer))
    elif block_count(answer):
        verb = "would evict" if dry_run else "evicted"
        typer.echo(f"{verb} {counted(answer)} of {namespace}{_left(answer)}")
    else:
        typer.echo(f"nothing to evict{_left(answer)}")


def _left(answer: EvictBlocksResponse) -> str:
    """What is said of pinned blocks, if there are any."""
    count = answer.pinned_count
    return f"; {plural(count, 'block')} left, being pinned" if count else ""


def parsed(hashes: Sequence[str], name: str = "--hash") -> list[bytes]:
    """Hashes of one length from hexadecimal, with or without 0x; `name` is what errors name."""
    keys = [_hash(text, name) for text in hashes]
    if len({len(key) for key in keys}) > 1:
        raise InvalidRequestError(f"{name}: all hashes must have one length")
    return keys


def _hash(text: str, name: str) -> bytes:
    digits = text.strip().lower().removeprefix("0x")
    if len(digits) % 2:
        raise InvalidRequestError(
            f"{name} {text}: {plural(len(digits), 'digit')}; a byte has two, one may be missing"
        )
    try:
        key = bytes.fromhex(digits)
    except ValueError as error:
        raise InvalidRequestError(f"{name} {text}: write it in hexadecimal") from error
    if not MIN_HASH_BYTES <= len(key) <= MAX_HASH_BYTES:
        raise InvalidRequestError(
            f"{name} {text}: {plural(len(key), 'byte')}; "
            f"a hash has {MIN_HASH_BYTES} to {MAX_HASH_BYTES}"
        )
    return key

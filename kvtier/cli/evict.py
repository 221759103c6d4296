"""`kvtier evict`: remove blocks now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.namespaces import is_selected, label
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)
from kvtier.cli.text import plural
from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import EvictBlocksResponse, NamespaceInfo

_NAMED: Final = 5


def evict(
    namespace: Annotated[
        str, typer.Argument(metavar="NAMESPACE", help="tenant/name, or tenant/name@digest.")
    ],
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Remove blocks of a namespace.

    Blocks that are leased are no longer found; their space is free when their leases end.
    Asks first; scripts pass --yes or --dry-run.
    """
    _check_selector(namespace)
    keys = parsed(hashes or [])
    if not keys and (group is not None or shard is not None):
        raise InvalidRequestError(
            "--group and --shard go with --hash; "
            "without --hash every block of the namespace is evicted"
        )
    is_asking = not (dry_run or yes)
    if is_asking:
        _check_can_ask(as_json)
    with admin(address, timeout_seconds) as client:
        evict_blocks = partial(client.evict_blocks, namespace, keys, group or 0, shard or 0)
        answer = evict_blocks(validate_only=not yes or dry_run)
        if is_asking and _count(answer):
            whose = described(namespace, client.list_namespaces())
            typer.confirm(f"Evict {_counted(answer)} of {whose}?", abort=True, err=True)
            answer = evict_blocks(validate_only=False)
    if as_json:
        print_json(as_document(answer))
    elif _count(answer):
        typer.echo(f"{'would evict' if dry_run else 'evicted'} {_counted(answer)} of {namespace}")
    else:
        typer.echo("nothing to evict")


def _check_selector(namespace: str) -> None:
    if not namespace or namespace.endswith("@"):
        raise InvalidRequestError(
            f"{namespace!r} names no namespace: write tenant/name, or tenant/name@digest"
        )


def _check_can_ask(as_json: bool) -> None:
    if as_json:
        raise InvalidRequestError("--json does not ask: pass --yes")
    if not sys.stdin.isatty():
        raise InvalidRequestError("not a terminal: pass --yes")


def parsed(hashes: Sequence[str]) -> list[bytes]:
    """Hashes of one length from hexadecimal, with or without 0x."""
    keys = [_hash(text) for text in hashes]
    if len({len(key) for key in keys}) > 1:
        raise InvalidRequestError("--hash: all hashes must have one length")
    return keys


def _hash(text: str) -> bytes:
    from kvtier.core.block import MAX_HASH_BYTES, MIN_HASH_BYTES

    digits = text.strip().lower().removeprefix("0x")
    if len(digits) % 2:
        raise InvalidRequestError(
            f"--hash {text}: {plural(len(digits), 'digit')}; a byte has two, one may be missing"
        )
    try:
        key = bytes.fromhex(digits)
    except ValueError as error:
        raise InvalidRequestError(f"--hash {text}: write it in hexadecimal") from error
    if not MIN_HASH_BYTES <= len(key) <= MAX_HASH_BYTES:
        raise InvalidRequestError(
            f"--hash {text}: {plural(len(key), 'byte')}; "
            f"a hash has {MIN_HASH_BYTES} to {MAX_HASH_BYTES}"
        )
    return key


def described(selector: str, namespaces: Sequence[NamespaceInfo]) -> str:
    """The selector, or the namespaces that it names if they are several."""
    labels = [label(info) for info in namespaces if is_selected(info, selector)]
    if len(labels) < 2:
        return selector
    rest = f", and {len(labels) - _NAMED:,} more" if len(labels) > _NAMED else ""
    return f"{len(labels):,} namespaces ({', '.join(labels[:_NAMED])}{rest})"


def _count(answer: EvictBlocksResponse) -> int:
    return answer.evicted_count + answer.deferred_count


def _counted(answer: EvictBlocksResponse) -> str:
    blocks = plural(_count(answer), "block")
    if answer.deferred_count:
        return f"{blocks} ({answer.deferred_count:,} of them when their leases end)"
    return blocks

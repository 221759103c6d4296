"""`kvtier invalidate`: what a namespace holds is never found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from kvtier.cli.connection import admin
from kvtier.cli.consent import Consent, block_count
from kvtier.cli.document import as_document, print_json
from kvtier.cli.namespaces import is_selected
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_LONG_TIMEOUT_SECONDS,
    AddressOption,
    DryRunOption,
    JsonOption,
    NamespaceArgument,
    TimeoutOption,
    YesOption,
)
from kvtier.cli.text import plural
from kvtier.core.block import Tier

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import InvalidateNamespaceResponse

# As the agent counts: what CLUSTER has is deleted, or left to its time to live, behind it.
_COUNTED = [Tier.GPU, Tier.HOST, Tier.DISK]


def invalidate(
    namespace: NamespaceArgument,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_LONG_TIMEOUT_SECONDS,
) -> None:
    """Make all blocks of a namespace unreachable, for good.

    They are not found again in any tier, also after a restart of the agent; the namespace gets a
    new generation id. For weights that changed without a new name or revision, or bytes that are
    not trusted any more. Workers go on, and what they store from now on is found.

    A block counts in each tier that held it, but CLUSTER. Asks first; scripts pass --yes or
    --dry-run.

    Example: kvtier invalidate default/my-model --dry-run
    """
    consent = Consent(namespace, is_given=dry_run or yes, as_json=as_json)
    with admin(address, timeout_seconds) as client:
        if dry_run:
            answer = _expected(client, namespace)
        else:
            if not consent.is_given:
                blocks = plural(_expected(client, namespace).block_count, "block")
                consent.ask(client, f"Invalidate {blocks} of")
            answer = client.invalidate(namespace, timeout_seconds)
    if as_json:
        print_json(as_document(answer))
    else:
        typer.echo(f"{'would invalidate' if dry_run else 'invalidated'} {_counted(answer)}")


def _expected(client: AdminClient, namespace: str) -> InvalidateNamespaceResponse:
    """What the agent would answer now."""
    from kvtier.v1.cache_admin_pb2 import InvalidateNamespaceResponse

    answer = client.evict_blocks(namespace, tiers=_COUNTED, validate_only=True, force=True)
    blocks = block_count(answer)
    selected = [info for info in client.list_namespaces() if is_selected(info, namespace)]
    return InvalidateNamespaceResponse(namespace_count=len(selected), block_count=blocks)


def _counted(answer: InvalidateNamespaceResponse) -> str:
    namespaces = plural(answer.namespace_count, "namespace")
    return f"{namespaces} with {plural(answer.block_count, 'block')}"

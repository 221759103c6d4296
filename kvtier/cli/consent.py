"""An operator's consent to the loss of blocks: asked for, or given beforehand with --yes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from kvtier.cli.namespaces import is_selected, label
from kvtier.cli.text import plural
from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import EvictBlocksResponse, NamespaceInfo

_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Consent:
    """To what a command does to the namespaces of a selector.

    Raises InvalidRequestError if the selector names none, or if it is not given and nobody can be
    asked for it.
    """

    selector: str
    is_given: bool
    as_json: bool

    def __post_init__(self) -> None:
        if not self.selector or self.selector.endswith("@"):
            raise InvalidRequestError(
                f"{self.selector!r} names no namespace: write tenant/name, or tenant/name@digest"
            )
        if self.is_given:
            return
        require_terminal(as_json=self.as_json)

    def ask(self, client: AdminClient, question: str) -> None:
        """The question ends with the names of the namespaces; a no ends the command."""
        whose = described(self.selector, client.list_namespaces())
        typer.confirm(f"{question} {whose}?", abort=True, err=True)


def require_terminal(*, as_json: bool) -> None:
    """Raises InvalidRequestError if nobody can be asked."""
    if as_json:
        raise InvalidRequestError("--json does not ask: pass --yes")
    if not sys.stdin.isatty():
        raise InvalidRequestError("not a terminal: pass --yes")


def described(selector: str, namespaces: Sequence[NamespaceInfo]) -> str:
    """The selector, or the namespaces that it names if they are several."""
    labels = [label(info) for info in namespaces if is_selected(info, selector)]
    if len(labels) < 2:
        return selector
    rest = f", and {len(labels) - _NAMED:,} more" if len(labels) > _NAMED else ""
    return f"{len(labels):,} namespaces ({', '.join(labels[:_NAMED])}{rest})"


def block_count(answer: EvictBlocksResponse) -> int:
    """Gone at once, or when their leases end."""
    return answer.evicted_count + answer.deferred_count


def counted(answer: EvictBlocksResponse) -> str:
    """`3 blocks`, and how many of them are leased."""
    blocks = plural(block_count(answer), "block")
    if answer.deferred_count:
        return f"{blocks} ({answer.deferred_count:,} of them when their leases end)"
    return blocks

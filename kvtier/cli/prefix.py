"""Naming the blocks of a prefix: by hashes, by a text or token file, or by a request seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from kvtier.cli.block_hash import parsed
from kvtier.cli.namespaces import chosen_namespace
from kvtier.cli.text import plural
from kvtier.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient
    from kvtier.v1.block_pb2 import NamespaceSpec

_WAYS: Final = "hashes, --request, --tokens or --text"


@dataclass(frozen=True, slots=True)
class NamedBlocks:
    """Hashes of consecutive blocks in one lane of a namespace, which is that of a request if one
    named them; `block_tokens` is 0 where nobody has said."""

    namespace: str
    hashes: list[bytes]
    group: int = 0
    shard: int = 0
    block_tokens: int = 0
    first: int = 0


@dataclass(frozen=True)
class Prefix:
    """The options that name a prefix; see `takes_a_prefix`."""

    hashes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="HASH", help="Block hashes in hexadecimal, in order.", show_default=False
        ),
    ] = None
    request: Annotated[
        str | None,
        typer.Option(
            "--request",
            metavar="ID",
            help="The blocks that a request of `kvtier requests` asked for.",
        ),
    ] = None
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="FILE", help="Token ids: a JSON list, or numbers; - for stdin."
        ),
    ] = None
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="A prompt, with --tokenizer; - for stdin."),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="Of --text: a tokenizer.json, or a model's directory with one.",
        ),
    ] = None
    special_tokens: Annotated[
        bool,
        typer.Option(
            "--special-tokens/--no-special-tokens",
            help="Of --text: add what the tokenizer adds, such as a token for the beginning.",
        ),
    ] = True
    block_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            help="Of --tokens and --text: of a block; else the namespace's.",
        ),
    ] = None
    extra: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Of --tokens and --text: what kvtier's own hashes were given as extra.",
        ),
    ] = ""
    hash_seed: Annotated[
        str | None,
        typer.Option(
            metavar="SEED",
            help="Of --tokens and --text: the PYTHONHASHSEED of a vLLM that was started with one.",
        ),
    ] = None
    group: Annotated[
        int | None, typer.Option(min=0, metavar="INDEX", help="The KV group; else 0.")
    ] = None
    shard: Annotated[
        int | None, typer.Option(min=0, metavar="INDEX", help="The shard; else 0.")
    ] = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what does not go together."""
        if len(self._ways) > 1:
            raise InvalidRequestError(f"name the blocks in one way: {_WAYS}")
        if (self.text is None) != (self.tokenizer is None):
            raise InvalidRequestError("--text and --tokenizer go together")
        of_tokens = self.block_tokens is not None or self.extra or self.hash_seed is not None
        if of_tokens and self.tokens is None and self.text is None:
            raise InvalidRequestError(
                "--block-tokens, --extra and --hash-seed go with --tokens or --text"
            )
        if not self.is_given and (self.group is not None or self.shard is not None):
            raise InvalidRequestError(f"--group and --shard go with {_WAYS}")

    @property
    def _ways(self) -> list[object]:
        ways = (self.hashes or None, self.request, self.tokens, self.text)
        return [way for way in ways if way is not None]

    @property
    def is_given(self) -> bool:
        return bool(self._ways)

    def required(self) -> Prefix:
        """Itself. Raises InvalidRequestError if nothing is named."""
        if not self.is_given:
            raise InvalidRequestError(f"name the blocks, by {_WAYS}")
        return self

    def find(self, client: AdminClient, namespace: str) -> NamedBlocks:
        """Raises KvtierErrors that name the option."""
        group, shard = self.group or 0, self.shard or 0
        if self.request is not None:
            return self._of_request(client, namespace, self.request)
        if self.hashes:
            return NamedBlocks(namespace, parsed(self.hashes), group, shard)
        spec = chosen_namespace(client, namespace).spec
        block_tokens = self.block_tokens or spec.block_tokens
        return NamedBlocks(namespace, self._hashed(spec, block_tokens), group, shard, block_tokens)

    def _of_request(self, client: AdminClient, namespace: str, request: str) -> NamedBlocks:
        seen = client.get_request(namespace, request)
        known = {lookup.keys.group: lookup.keys for lookup in seen.lookups}
        group = min(known) if self.group is None else self.group
        if group not in known:
            groups = ", ".join(map(str, sorted(known)))
            raise NotFoundError(f"--group {group}: request {request!r} asked for group {groups}")
        keys = known[group]
        size, data = keys.hash_bytes, keys.hashes
        hashes = [data[start : start + size] for start in range(0, len(data), size)]
        shard = keys.shard if self.shard is None else self.shard
        return NamedBlocks(seen.namespace, hashes, group, shard, first=keys.position)

    def _hashed(self, spec: NamespaceSpec, block_tokens: int) -> list[bytes]:
        from kvtier.cli.token_hashes import hashes_of, read_tokens, tokenized

        if not block_tokens:
            raise InvalidRequestError("--block-tokens is missing: the namespace does not say")
        if self.text is not None and self.tokenizer is not None:
            named = f"--text {self.text}"
            tokens = tokenized(self.text, self.tokenizer, special_tokens=self.special_tokens)
        else:
            named = f"--tokens {self.tokens}"
            tokens = read_tokens(self.tokens or "-")
        if len(tokens) < block_tokens:
            raise InvalidRequestError(
                f"{named}: {plural(len(tokens), 'token')}, and a block has {block_tokens}: "
                "only full blocks are cached"
            )
        return hashes_of(spec, tokens, block_tokens, self.extra, self.hash_seed)


def takes_a_prefix(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in place of its parameter `prefix`, the options of Prefix."""
    options = get_type_hints(Prefix, include_extras=True)
    taken = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=each.default,
            annotation=options[each.name],
        )
        for each in fields(Prefix)
    ]
    own = list(inspect.signature(verb, eval_str=True).parameters.values())
    place = [each.name for each in own].index("prefix")
    names = {each.name for each in taken}

    @wraps(verb)
    def command(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in names}
        verb(prefix=Prefix(**chosen), **arguments)

    parameters = [*own[:place], *taken, *own[place + 1 :]]
    parameters.sort(key=lambda each: each.default is not inspect.Parameter.empty)
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    del vars(command)["__wrapped__"]
    return command

"""`kvtier namespaces`: whose blocks the agent holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
    namespaces_that_begin_with,
)
from kvtier.cli.text import console, human_bytes, human_seconds, printable, table
from kvtier.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from rich.table import Table

    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import NamespaceInfo

_COLUMNS = ("namespace", "tokens", "block", "blocks", "used", "pinned", "sessions")

#: In the order of the proto.
_TIERS = ("GPU", "HOST", "DISK", "CLUSTER")


def namespaces(
    namespace: Annotated[
        str,
        typer.Argument(
            metavar="[NAMESPACE]",
            help="The layouts of tenant/name[@digest], field by field.",
            autocompletion=namespaces_that_begin_with,
        ),
    ] = "",
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List namespaces, their blocks and bytes; or the layouts of one.

    Tokens and block are those of one block. Where namespaces of one name have several layouts they
    share nothing, which is usually a mistake: the fields that differ are named, with their values.
    Rules of the configuration are shown with what their namespaces occupy together, in whole
    extents.

    Blocks count in each tier that has them; what is on devices is shown device by device.

    Example: kvtier namespaces default/my-model
    """
    with admin(address, timeout_seconds) as client:
        found = client.list_namespaces()
    if namespace:
        found = [info for info in found if is_selected(info, namespace)]
        if not found:
            raise NotFoundError(f"no namespace {namespace!r}: see `kvtier namespaces`")
    if as_json:
        print_json({"namespaces": [as_document(info) for info in found]})
        return
    out = console()
    if not found:
        out.print("no namespaces yet: one is registered at a worker's first call")
        return
    if namespace:
        for drawn in layouts(found):
            out.print(drawn)
    else:
        out.print(table(_COLUMNS, map(row, found)))
    for line in (*differences(found), *copies(found), *rules(found)):
        out.print(line)


def label(info: NamespaceInfo) -> str:
    """What commands take: `tenant/name@digest`, the digest cut to 8 digits."""
    return f"{info.spec.tenant}/{info.spec.name}@{info.layout_digest.hex()[:8]}"


def is_selected(info: NamespaceInfo, selector: str) -> bool:
    """Whether `tenant/name` or `tenant/name@digest` names this namespace."""
    path, _, digest = selector.partition("@")
    is_path = path == f"{info.spec.tenant}/{info.spec.name}"
    return is_path and info.layout_digest.hex().startswith(digest.lower())


def chosen_namespace(client: AdminClient, selector: str) -> NamespaceInfo:
    """The one that a selector names. Raises NotFoundError, or InvalidRequestError for several."""
    chosen = [info for info in client.list_namespaces() if is_selected(info, selector)]
    if not chosen:
        raise NotFoundError(f"no namespace {selector!r}: see `kvtier namespaces`")
    if len(chosen) > 1:
        labels = ", ".join(map(label, chosen))
        raise InvalidRequestError(f"{selector!r} has {len(chosen)} layouts; choose one of {labels}")
    return chosen[0]


def row(info: NamespaceInfo) -> tuple[str, ...]:
    """The cells of one line of the table."""
    return (
        label(info),
        f"{info.spec.block_tokens:,}" if info.spec.block_tokens else "-",
        "+".join(human_bytes(size) for size in info.spec.block_bytes),
        f"{sum(info.block_count):,}",
        human_bytes(sum(info.used_bytes)),
        human_bytes(sum(info.pinned_bytes)),
        f"{info.session_count:,}",
    )


def layouts(found: Sequence[NamespaceInfo]) -> Iterator[Table]:
    """For each namespace all that makes its blocks interchangeable."""
    for info in found:
        yield table((label(info), ""), layout(info).items(), left=2)


def layout(info: NamespaceInfo) -> dict[str, str]:
    """Its fields by name, those of `extra` one by one; what is not set is left out."""
    fields = {
        field.name: value
        for field, value in info.spec.ListFields()
        if field.name not in ("tenant", "name", "extra")
    }
    fields["block_bytes"] = "+".join(human_bytes(size) for size in info.spec.block_bytes)
    extra = {f"extra.{key}": value for key, value in sorted(info.spec.extra.items())}
    return {printable(name): printable(str(value)) for name, value in {**fields, **extra}.items()}


def differences(found: Sequence[NamespaceInfo]) -> Iterator[str]:
    """For each name with several layouts a heading, and a line for each field that differs."""
    by_name: dict[str, list[NamespaceInfo]] = {}
    for info in found:
        by_name.setdefault(f"{info.spec.tenant}/{info.spec.name}", []).append(info)
    for name, infos in by_name.items():
        if len(infos) < 2:
            continue
        yield f"{name} has {len(infos)} layouts, which share nothing; they differ in:"
        fields = [layout(info) for info in infos]
        for field in dict.fromkeys(each for known in fields for each in known):
            values = [known.get(field, "-") for known in fields]
            if len(set(values)) > 1:
                yield f"  {field}: " + ", ".join(
                    f"{value} (@{info.layout_digest.hex()[:8]})"
                    for value, info in zip(values, infos, strict=True)
                )


def copies(found: list[NamespaceInfo]) -> Iterator[str]:
    """A line for each device that has copies of a namespace's blocks."""
    for info in found:
        for each in info.copies:
            if each.block_count:
                size = human_bytes(each.used_bytes)
                yield f"{label(info)}: {each.block_count:,} blocks, {size}, on GPU {each.device}"


def rules(found: list[NamespaceInfo]) -> Iterator[str]:
    """A line for each rule that holds for one of them."""
    for name, info in {info.rule: info for info in found if info.rule}.items():
        said = [
            _quota(label, *values)
            for label, *values in zip(
                _TIERS, info.occupied_bytes, info.limit_bytes, info.guaranteed_bytes, strict=False
            )
            if any(values)
        ]
        if info.HasField("ttl"):
            said.append(f"blocks live {human_seconds(info.ttl.ToTimedelta().total_seconds())}")
        yield f"rule {name}: {'; '.join(said) or 'nothing stored'}"


def _quota(tier: str, occupied_bytes: int, limit_bytes: int, guaranteed_bytes: int) -> str:
    """`HOST 20.0 MiB of at most 1.00 GiB, 512 MiB guaranteed`."""
    said = f"{tier} {human_bytes(occupied_bytes)}"
    if limit_bytes:
        said += f" of at most {human_bytes(limit_bytes)}"
    return said + (f", {human_bytes(guaranteed_bytes)} guaranteed" if guaranteed_bytes else "")

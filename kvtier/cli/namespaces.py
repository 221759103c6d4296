"""`kvtier namespaces`: whose blocks the agent holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)
from kvtier.cli.text import console, human_bytes, human_seconds, printable, table

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import NamespaceInfo

_COLUMNS = ("namespace", "model", "dtype", "block", "blocks", "used", "pinned", "sessions")

#: In the order of the proto.
_TIERS = ("GPU", "HOST", "DISK", "CLUSTER")


def namespaces(
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List namespaces, their blocks and bytes.

    Where namespaces of one name have several layouts, the fields that differ are named. Rules of
    the configuration are shown with what their namespaces occupy together, in whole extents.
    """
    with admin(address, timeout_seconds) as client:
        found = client.list_namespaces()
    if as_json:
        print_json({"namespaces": [as_document(info) for info in found]})
        return
    out = console()
    if not found:
        out.print("no namespaces yet: one is registered at a worker's first call")
        return
    out.print(table(_COLUMNS, (row(info) for info in found), left=3))
    for line in (*differences(found), *rules(found)):
        out.print(line)


def label(info: NamespaceInfo) -> str:
    """What commands take: `tenant/name@digest`, the digest cut to 8 digits."""
    return f"{info.spec.tenant}/{info.spec.name}@{info.layout_digest.hex()[:8]}"


def is_selected(info: NamespaceInfo, selector: str) -> bool:
    """Whether `tenant/name` or `tenant/name@digest` names this namespace."""
    path, _, digest = selector.partition("@")
    is_path = path == f"{info.spec.tenant}/{info.spec.name}"
    return is_path and info.layout_digest.hex().startswith(digest.lower())


def row(info: NamespaceInfo) -> tuple[str, ...]:
    """The cells of one line of the table."""
    sizes = "+".join(human_bytes(size) for size in info.spec.block_bytes)
    return (
        label(info),
        printable(info.spec.model) or "-",
        printable(info.spec.dtype) or "-",
        f"{info.spec.block_tokens} tokens, {sizes}",
        f"{sum(info.block_count):,}",
        human_bytes(sum(info.used_bytes)),
        human_bytes(sum(info.pinned_bytes)),
        f"{info.session_count:,}",
    )


def differences(found: list[NamespaceInfo]) -> Iterator[str]:
    """A line for each namespace that shares its name with another layout."""
    for info in found:
        if info.sibling_differences:
            yield f"{label(info)} differs from others of its name in " + printable(
                ", ".join(info.sibling_differences)
            )


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

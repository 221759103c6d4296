"""`kvtier pins`: what is kept from eviction."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

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
from kvtier.cli.text import console, human_bytes, human_seconds, table

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import Pin

_COLUMNS = ("pin", "namespace", "reason", "blocks", "pinned", "left")


def pins(
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List pins: whose blocks, how many, why, and for how long.

    A block counts once; the bytes are those of all tiers that keep it.

    Example: kvtier pins --namespace default/my-model
    """
    with admin(address, timeout_seconds) as client:
        found = client.list_pins(namespace)
    if as_json:
        print_json({"pins": [as_document(pin) for pin in found]})
        return
    if not found:
        console().print("no pins")
        return
    now = datetime.now(UTC)
    console().print(table(_COLUMNS, (row(pin, now) for pin in found), left=3))


def row(pin: Pin, now: datetime) -> tuple[str, ...]:
    """The cells of one line of the table."""
    left = pin.expire_time.ToDatetime(tzinfo=UTC) - now
    return (
        pin.pin_id,
        pin.namespace,
        pin.reason or "-",
        f"{pin.block_count:,}",
        human_bytes(pin.pinned_bytes),
        human_seconds(max(0.0, left.total_seconds())),
    )

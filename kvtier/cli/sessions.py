"""`kvtier sessions`: which workers are connected."""

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
    TimeoutOption,
)
from kvtier.cli.text import console, human_bytes, human_seconds, printable, table
from kvtier.cli.troubles import of_sessions

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import Session

_COLUMNS = (
    "session",
    "namespace",
    "worker",
    "pid",
    "uid",
    "age",
    "leases",
    "leased",
)
#: Of those whose worker stalled or went; without one it would only take room.
_QUARANTINED = "quarantined"


def sessions(
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List connected workers, and what each leases.

    Leased bytes are all that a session leases, holds, reserves, or has in quarantine: slots that it
    may still write to though its reservation has ended. A worker that stands still is named.

    Example: kvtier sessions --json
    """
    with admin(address, timeout_seconds) as client:
        found = client.list_sessions()
    if as_json:
        print_json({"sessions": [as_document(session) for session in found]})
        return
    if not found:
        console().print("no sessions")
        return
    now = datetime.now(UTC)
    out = console()
    rows = [row(session, now) for session in found]
    columns: tuple[str, ...] = _COLUMNS
    if any(session.quarantined_bytes for session in found):
        columns += (_QUARANTINED,)
        rows = [
            (*cells, human_bytes(session.quarantined_bytes))
            for cells, session in zip(rows, found, strict=True)
        ]
    out.print(table(columns, rows, left=3))
    for trouble in of_sessions(found):
        out.print(trouble.text)


def row(session: Session, now: datetime) -> tuple[str, ...]:
    """The cells of one line of the table."""
    age = now - session.create_time.ToDatetime(tzinfo=UTC)
    return (
        f"{session.session_id:x}",
        session.namespace,
        printable(session.worker) or "-",
        str(session.pid) if session.pid else "-",
        str(session.uid) if session.pid else "-",
        human_seconds(max(0.0, age.total_seconds())),
        f"{session.lease_count:,}",
        human_bytes(session.leased_bytes),
    )

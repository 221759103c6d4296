"""Single values of a store."""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.memory import ByteArray
from kvtier.tiers.cluster.exchange import Fetch
from kvtier.tiers.cluster.failure import ClusterDownError, Failure, cluster_down
from kvtier.tiers.cluster.replies import Misfit
from kvtier.tiers.cluster.store import ClusterStore


def fetch_into(
    store: ClusterStore, name: bytes, head_bytes: int, cell: ByteArray, deadline: float
) -> bytes | Misfit | None:
    """The head of a value whose payload is in the cell then. Raises ClusterDownError."""
    [fetched] = store.fetch([Fetch(name, head_bytes, cell)], deadline)
    if isinstance(fetched, ClusterDownError):
        raise fetched
    return fetched


def get(store: ClusterStore, names: Sequence[bytes], deadline: float) -> list[bytes | None]:
    """Small values, None for those that are missing. Raises ClusterDownError."""
    values = []
    for name in names:
        [value] = store.ask(name, [(b"GET", name)], deadline)
        if isinstance(value, Exception):
            raise cluster_down(value) from value
        if not isinstance(value, bytes | None):
            raise ClusterDownError(Failure.PROTOCOL, "no value")
        values.append(value)
    return values

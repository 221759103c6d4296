"""A deployment as threads work on it: its parts, and what errors say of it."""

from __future__ import annotations

import time

from kvtier.tiers.cluster.blocks import ClusterBlocks
from kvtier.tiers.cluster.failure import ClusterDownError, Failure
from kvtier.tiers.cluster.nodes import NodeRegistry
from kvtier.tiers.cluster.sealing import Sealer
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.health import Health

_PROBE_TTL_SECONDS = 60
#: What stops writes and leaves reads as they are.
_READS_ONLY = (Failure.OUT_OF_MEMORY, Failure.READ_ONLY, Failure.REFUSED)


class ClusterStorage:
    """Connects when it is first used. Raises ConfigError for TLS files that cannot be used."""

    def __init__(
        self,
        settings: ClusterSettings,
        sealer: Sealer,
        *,
        key_prefix: str,
        ttl_seconds: int,
        timeout_seconds: float,
    ) -> None:
        self.store = ClusterStore(settings)
        self.blocks = ClusterBlocks(
            self.store, sealer, key_prefix=key_prefix, ttl_seconds=ttl_seconds
        )
        self.registry = NodeRegistry(self.store, key_prefix=key_prefix)
        self._label = f"CLUSTER {settings.url.redacted()}"
        self._probe_name = f"{key_prefix}:1:probe".encode()
        self._timeout_seconds = timeout_seconds

    def deadline(self) -> float:
        """Of an exchange that begins now."""
        return time.monotonic() + self._timeout_seconds

    @property
    def label(self) -> str:
        return self._label

    def check(self) -> None:
        """A server says itself when nothing may be written."""

    def probe(self) -> None:
        self.store.put(self._probe_name, b"1", _PROBE_TTL_SECONDS, self.deadline())

    def verdict(self, error: OSError, *, is_read: bool) -> Health | None:
        if not isinstance(error, ClusterDownError):
            return Health.UNAVAILABLE
        if error.failure in _READS_ONLY:
            return Health.ACTIVE if is_read else Health.DEGRADED
        return Health.UNAVAILABLE

    def close(self) -> None:
        """Calls in other threads fail, and all later ones."""
        self.store.close()

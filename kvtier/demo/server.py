"""The Redis or Valkey on which the nodes' CLUSTER tier is."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvtier.config.cluster_url import check_url
from kvtier.errors import ConfigError
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import ClusterUrl, parse_url

#: Occupied only as far as blocks need it.
_CAPACITY_BYTES = 4 << 30
_CHECK_SECONDS = 5.0
_REMOVE_SECONDS = 30.0
#: For what a demo that was killed leaves on somebody else's server.
_TTL_SECONDS = 3600


@dataclass(frozen=True)
class Server:
    """`label` is for people. `stop` ends it at once; None if it is not the demo's to stop."""

    label: str
    url: str
    key_prefix: str
    stop: Callable[[], None] | None

    def settings(self, node: str) -> dict[str, object]:
        """Of an agent on it."""
        return {
            "tiers.cluster.url": self.url,
            "tiers.cluster.key_prefix": self.key_prefix,
            "tiers.cluster.ttl": _TTL_SECONDS,
            "tiers.cluster.node_name": node,
            # A machine on which two nodes, a server and a model share some cores may be slow.
            "tiers.cluster.lookup_timeout": 1.0,
        }


def address_of(url: str) -> ClusterUrl:
    """A wish for an existing server, taken apart. Raises ConfigError, which shows no password."""
    try:
        address = parse_url(check_url(url))
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None
    return address


@contextmanager
def own_server(directory: Path) -> Iterator[Server]:
    """A private Valkey, which ends with the block or before. Raises ConfigError."""
    with EmbeddedValkey(directory, _CAPACITY_BYTES) as valkey:
        yield Server("a Valkey of the demo's own", valkey.url, "kvtier", valkey.stop)


@contextmanager
def existing_server(url: str) -> Iterator[Server]:
    """One that is there already. What the demo has written to it is removed at the end.

    Raises OSError if it does not answer.
    """
    address = address_of(url)
    key_prefix = f"kvtier-demo-{secrets.token_hex(4)}"
    store = ClusterStore(ClusterSettings(address))
    try:
        try:
            found = store.check(time.monotonic() + _CHECK_SECONDS)
        except OSError as error:
            raise OSError(f"{address.redacted()} does not answer: {error.strerror}") from error
        label = f"{found.kind.capitalize()} {found.version} at {address.redacted()}"
        try:
            yield Server(label, url, key_prefix, None)
        finally:
            with suppress(OSError):  # it is gone: what it had ends by its TTL, or is gone too
                _remove(store, f"{key_prefix}:".encode())
    finally:
        store.close()


def _remove(store: ClusterStore, prefix: bytes) -> None:
    deadline = time.monotonic() + _REMOVE_SECONDS
    store.delete(list(store.scan(prefix, deadline)), deadline)

"""Two nodes with every tier, under load, as an operator finds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvtier import NamespaceSpec
from kvtier.core.block import Tier
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from tests.cluster.agents import Peer, peer, store
from tests.cluster.load import Load
from tests.faults.blocks import KIB, MIB
from tests.faults.waiting import wait_until

BLOCK_TOKENS = 16
#: A long prompt, and the beginning of it that others share.
TOKENS = list(range(1000, 1000 + 24 * BLOCK_TOKENS + 3))
HASHES = block_hashes(TOKENS, BLOCK_TOKENS)
CHAT = NamespaceSpec(
    name="chat",
    tenant="acme",
    model="llama-3-8b",
    dtype="bf16",
    block_tokens=BLOCK_TOKENS,
    block_bytes=(64 * KIB,),
    hash_algorithm=ALGORITHM,
)
SIBLING = NamespaceSpec(
    name="chat",
    tenant="acme",
    model="llama-3-8b",
    dtype="fp8_e4m3",
    block_tokens=BLOCK_TOKENS,
    block_bytes=(32 * KIB,),
    hash_algorithm=ALGORITHM,
)
REQUEST = "chatcmpl-0123456789abcdef0123456789abcdef"
_START_SECONDS = 15.0


@dataclass(frozen=True)
class TwoNodes:
    """`one` has stored what `CHAT` has; `load` goes on."""

    one: Peer
    two: Peer
    load: Load


@contextmanager
def two_nodes(directory: Path) -> Iterator[TwoNodes]:
    """Agents named node-1 and node-2, each with HOST and DISK, and a server for CLUSTER."""
    with (
        RedisServer(Transport.UNIX, maxmemory_bytes=256 * MIB) as server,
        peer(server.url, **_settings(directory / "1", "node-1")) as one,
        peer(server.url, **_settings(directory / "2", "node-2")) as two,
    ):
        wait_until(lambda: len(one.admin.nodes()) == 2, _START_SECONDS)
        _fill(one)
        with Load(two, one, "load") as load:
            wait_until(lambda: load.hot.outcome.right and load.reading.loads, _START_SECONDS)
            yield TwoNodes(one, two, load)


def _settings(disk: Path, name: str) -> dict[str, object]:
    return {
        "tiers__host__capacity": "64MiB",
        "tiers__disk__paths": disk,
        "tiers__disk__capacity": "128MiB",
        "tiers__disk__min_free": 0,
        "tiers__cluster__node_name": name,
        "leases__max_share": 0.5,
    }


def _fill(peer: Peer) -> None:
    chat = peer.client.namespace(CHAT)
    chat.lookup(HASHES, request_id="first")
    store(chat, HASHES)
    chat.lookup(HASHES, request_id=REQUEST)
    store(peer.client.namespace(SIBLING), HASHES[:4])
    peer.admin.flush(Tier.DISK)
    peer.flush()

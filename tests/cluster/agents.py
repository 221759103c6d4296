"""Agents that share a cluster, and what the tests ask of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtier import BlockStatus, Client, Namespace, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.client.namespace import START, Place
from kvtier.core.block import Match, Tier
from kvtier.memory import ByteArray
from kvtier.testing import AgentProcess, is_payload_for, payload_for
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.waiting import wait_until

ACTIVE, DEGRADED = pb.TierStats.ACTIVE, pb.TierStats.DEGRADED
UNAVAILABLE = pb.TierStats.UNAVAILABLE
LOOKUP_SECONDS = 0.1
HEARTBEAT_SECONDS = 2.0
_START_SECONDS = 10.0
_CALL_SECONDS = 10.0


@dataclass(frozen=True)
class Peer:
    """One agent, with a client on it."""

    agent: AgentProcess
    client: Client
    admin: AdminClient

    @property
    def cluster(self) -> pb.TierStats:
        return self.tier(Tier.CLUSTER)

    def tier(self, tier: Tier) -> pb.TierStats:
        return next(each for each in self.admin.get_stats().tiers if int(each.tier) == tier)

    @property
    def state(self) -> int:
        return int(self.cluster.state)

    def flush(self) -> None:
        """Until all that it has stored is in the cluster."""
        self.admin.flush(Tier.CLUSTER)

    def leave_host(self, spec: NamespaceSpec) -> None:
        """As if HOST had evicted everything."""
        self.admin.evict_blocks(spec.label, tiers=[Tier.HOST])


@contextmanager
def peers(url: str, count: int = 2, **settings: Any) -> Iterator[list[Peer]]:
    """Agents that are in touch with their cluster; settings are named with __ for the dot."""
    with ExitStack() as stack:
        found = [stack.enter_context(peer(url, **settings)) for _ in range(count)]
        for each in found:
            wait_until(lambda each=each: each.cluster.state == ACTIVE, _START_SECONDS)  # type: ignore[misc]
        yield found


@contextmanager
def peer(url: str, **settings: Any) -> Iterator[Peer]:
    with (
        AgentProcess(settings=settings_of(url, **settings)) as agent,
        Client(agent.address, timeout_seconds=_CALL_SECONDS) as client,
        AdminClient(agent.admin_address, timeout_seconds=_CALL_SECONDS) as admin,
    ):
        yield Peer(agent, client, admin)


def settings_of(url: str, **settings: object) -> dict[str, object]:
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    return {
        "tiers.host.capacity": "64MiB",
        "tiers.host.memory_reserve": 0,
        "tiers.cluster.url": url,
        "tiers.cluster.lookup_timeout": LOOKUP_SECONDS,
        "tiers.cluster.heartbeat": HEARTBEAT_SECONDS,
        "leases.max_share": 1.0,
        **keys,
    }


# Blocks whose bytes derive from their keys, lanes and namespaces.


def _scope(spec: NamespaceSpec, place: Place, edition: str) -> str:
    return f"{spec.label} {place.group} {place.shard} {edition}"


def blocks_of(
    spec: NamespaceSpec, hashes: Sequence[bytes], place: Place = START, edition: str = ""
) -> list[ByteArray]:
    """Blocks of different editions are different for one key, as those of two generations are."""
    size, scope = spec.block_bytes[place.group], _scope(spec, place, edition)
    return [payload_for(each, size, namespace=scope) for each in hashes]


def store(
    namespace: Namespace, hashes: Sequence[bytes], place: Place = START, edition: str = ""
) -> None:
    """All of them are in HOST then."""
    blocks = blocks_of(namespace.spec, hashes, place, edition)
    statuses = namespace.store(hashes, blocks, place=place)
    assert set(statuses) <= {BlockStatus.OK, BlockStatus.PRESENT}, statuses


@dataclass(frozen=True)
class Outcome:
    """Blocks of loads."""

    right: int = 0
    wrong: int = 0
    absent: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.right + other.right, self.wrong + other.wrong, self.absent + other.absent
        )


def load(
    namespace: Namespace, hashes: Sequence[bytes], place: Place = START, edition: str = ""
) -> Outcome:
    """Loads and compares every byte."""
    spec = namespace.spec
    size, scope = spec.block_bytes[place.group], _scope(spec, place, edition)
    out = np.zeros((len(hashes), size), np.uint8)
    statuses = namespace.load_into(hashes, out, place=place)
    right = wrong = 0
    for block_hash, status, row in zip(hashes, statuses, out, strict=True):
        if status == BlockStatus.OK:
            is_right = is_payload_for(row, block_hash, size, namespace=scope)
            right, wrong = right + is_right, wrong + (not is_right)
    return Outcome(right, wrong, len(hashes) - right - wrong)


def present(namespace: Namespace, hashes: Sequence[bytes], place: Place = START) -> int:
    """How many of them are in some tier, as far as it is known."""
    return sum(namespace.lookup(hashes, match=Match.PRESENCE, place=place).present)


def wait_for_all(
    namespace: Namespace, hashes: Sequence[bytes], seconds: float, place: Place = START
) -> None:
    """Until a lookup finds all of them."""
    wait_until(lambda: namespace.lookup(hashes, place=place).matched == len(hashes), seconds)


def wait_for_outcome(
    namespace: Namespace, hashes: Sequence[bytes], outcome: Outcome, seconds: float
) -> None:
    """Until a load has it; none of them brings a wrong byte."""

    def loaded() -> bool:
        found = load(namespace, hashes)
        assert not found.wrong
        return found == outcome

    wait_until(loaded, seconds)

"""Calls about blocks of the cluster that wait where a test wants them to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from kvtier.core.block import BlockKey, Lane
from kvtier.memory import ByteArray
from kvtier.tiers.cluster.blocks import ClusterBlocks, FetchedBlock, Wanted
from kvtier.tiers.cluster.codec import Codec

_GATE_SECONDS = 20.0


class Gate:
    """Calls of a chosen kind wait, before they are carried out or when they have been."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shut: set[str] = set()
        self._waiting: Counter[str] = Counter()
        #: Calls that have been carried out.
        self.calls: Counter[str] = Counter()

    def shut(self, *points: str) -> None:
        """`fetch` is before the server is asked, `fetched` after it has answered; and so on."""
        with self._changed:
            self._shut.update(points)

    def open(self, *points: str) -> None:
        """All of them, unless told."""
        with self._changed:
            self._shut.difference_update(points or set(self._shut))
            self._changed.notify_all()

    def waiting(self, point: str) -> int:
        with self._changed:
            return self._waiting[point]

    def reach(self, point: str) -> float:
        """Returns how long it took to pass, in seconds."""
        begin = time.monotonic()
        with self._changed:
            self._waiting[point] += 1
            self._changed.wait_for(lambda: point not in self._shut, _GATE_SECONDS)
            self._waiting[point] -= 1
            self.calls[point] += 1
        return time.monotonic() - begin


class GatedBlocks(ClusterBlocks):
    """Points: exist, existed, store, stored, fetch, fetched, delete, deleted."""

    gate: Gate

    def exist(
        self, identity: bytes, lane: Lane, hashes: Sequence[bytes], deadline: float
    ) -> list[bool | None]:
        waited = self.gate.reach("exist")
        found = super().exist(identity, lane, hashes, deadline + waited)
        self.gate.reach("existed")
        return found

    def store(
        self,
        identity: bytes,
        key: BlockKey,
        payload: ByteArray,
        codec: Codec,
        deadline: float,
        ttl_seconds: float | None = None,
    ) -> None:
        waited = self.gate.reach("store")
        super().store(identity, key, payload, codec, deadline + waited, ttl_seconds)
        self.gate.reach("stored")

    def fetch(
        self, identity: bytes, wanted: Sequence[Wanted], deadline: float
    ) -> list[FetchedBlock]:
        waited = self.gate.reach("fetch")
        found = super().fetch(identity, wanted, deadline + waited)
        self.gate.reach("fetched")
        return found

    def delete(self, identity: bytes, lane: Lane, hashes: Sequence[bytes], deadline: float) -> int:
        waited = self.gate.reach("delete")
        count = super().delete(identity, lane, hashes, deadline + waited)
        self.gate.reach("deleted")
        return count

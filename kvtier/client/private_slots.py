"""What `load` and `reserve` give where there is no shared memory: places in this process's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from kvtier.client.attachment import MappedExtent
from kvtier.client.requests import Place, block_bytes_of, lookup_of, lookup_request
from kvtier.client.slots import OK, GrantedSlots, Loaded, Reservation
from kvtier.client.streaming import Call, Steps, loading, storing
from kvtier.core.block import BlockStatus, Match, Wait
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.v1 import block_pb2

_EXTENT, _GENERATION = 1, 1

#: Takes steps, and says what they come to.
Run = Callable[[Steps[list[int]]], list[int]]


def private_load(
    spec: NamespaceSpec, hashes: Sequence[bytes], place: Place, hold_id: int, wait: Wait = Wait.ALL
) -> Steps[Loaded]:
    """As `Namespace.load`; the views are copies, and stay what they are."""
    rows = np.empty((len(hashes), block_bytes_of(spec, place)), np.uint8)
    statuses = yield from loading(spec, hashes, rows, place, hold_id, wait)
    return Loaded(_slots(statuses, rows), math.inf, lambda: None)


def private_reserve(
    spec: NamespaceSpec, hashes: Sequence[bytes], place: Place, run: Run
) -> Steps[Reservation]:
    """As `Namespace.reserve`; the agent hears of it at the commit, which `run` does."""
    rows = np.empty((len(hashes), block_bytes_of(spec, place)), np.uint8)
    answer = yield Call("LookupPrefix", lookup_request(hashes, place, Match.PRESENCE))
    present = lookup_of(answer, len(hashes)).present
    statuses = [int(BlockStatus.PRESENT) if each else OK for each in present]
    grantor = _StreamGrantor(
        lambda wanted: run(storing(spec, hashes, rows, place, frozenset(wanted)))
    )
    return Reservation(_slots(statuses, rows), math.inf, grantor)


def _slots(statuses: list[int], rows: ByteArray) -> GrantedSlots:
    """One after the other in an extent of their own."""
    count = len(rows)
    extent = MappedExtent(_EXTENT, rows, np.full(count, _GENERATION, np.uint64))
    slots = block_pb2.Slots(
        extent=[_EXTENT] * count, slot=range(count), generation=[_GENERATION] * count
    )
    return GrantedSlots(statuses, slots, {_EXTENT: extent}, rows.shape[1])


class _StreamGrantor:
    """Sends what was written; of other keys it has no bytes."""

    def __init__(self, send: Callable[[list[int]], list[int]]) -> None:
        self._send = send

    def commit(self, indexes: list[int]) -> list[int]:
        statuses = self._send(indexes)
        return [statuses[index] for index in indexes]

    def give_back(self) -> None:
        """The agent has given nothing."""

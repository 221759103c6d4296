"""Blocks that came to HOST when the load that asked for them had ended."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.source import Source
from kvtier.core.block import Lane
from kvtier.tiers.size_class import SizeClass

_MOST: Final = 1 << 16
#: Forgotten at one time, so that nobody waits for it.
_FORGOTTEN_AT_ONCE: Final = 512
#: Workers ask again within their timeout, or not at all.
_KEPT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Late:
    row: int
    slot: int
    generation: int
    source: Source
    landed_at: float


class LateArrivals:
    """Who supplied each, until it is leased: a hit counts for the tier that had the block."""

    def __init__(self) -> None:
        # A dict is slow to find its first key when many before it have gone.
        self._late: OrderedDict[tuple[SizeClass, Lane, bytes], _Late] = OrderedDict()

    def __len__(self) -> int:
        return len(self._late)

    def note(self, flight: Flight) -> None:
        """Its block is in HOST."""
        host, now = flight.host, time.monotonic()
        row, generation = host.table.owner[flight.slot], host.table.generations[flight.slot]
        key = (host, flight.lane, flight.block_hash)
        self._late.pop(key, None)  # it goes to the end
        self._late[key] = _Late(row, flight.slot, generation, flight.source, now)
        self._forget_some()

    def claim(
        self, host: SizeClass, lane: Lane, hashes: Sequence[bytes]
    ) -> dict[tuple[Lane, bytes], Source]:
        """Of those that are to be leased; the next ones who load them find them in HOST."""
        found: dict[tuple[Lane, bytes], Source] = {}
        for block_hash in hashes:
            late = self._late.pop((host, lane, block_hash), None)
            if late is not None and host.is_at(late.row, late.slot, late.generation):
                found[lane, block_hash] = late.source
        self._forget_some()
        return found

    def _forget_some(self) -> None:
        """Those that were kept for long enough, and what are too many; the oldest are first."""
        landed_at = time.monotonic() - _KEPT_SECONDS
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not self._late:
                return
            oldest = self._late[next(iter(self._late))]
            if len(self._late) <= _MOST and oldest.landed_at >= landed_at:
                return
            self._late.popitem(last=False)

"""Blocks that came to HOST when the load that asked for them had ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.source import Source
from kvtier.core.block import Lane
from kvtier.tiers.size_class import SizeClass

_MOST: Final = 1 << 16
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
        self._late: dict[tuple[SizeClass, Lane, bytes], _Late] = {}

    def note(self, flight: Flight) -> None:
        """Its block is in HOST."""
        host, now = flight.host, time.monotonic()
        row, generation = host.table.owner[flight.slot], host.table.generations[flight.slot]
        key = (host, flight.lane, flight.block_hash)
        self._late.pop(key, None)  # it goes to the end
        self._late[key] = _Late(row, flight.slot, generation, flight.source, now)
        self._forget_until(now - _KEPT_SECONDS)

    def claim(
        self, host: SizeClass, lane: Lane, hashes: Sequence[bytes]
    ) -> dict[tuple[Lane, bytes], Source]:
        """Of those that are to be leased; the next ones who load them find them in HOST."""
        self._forget_until(time.monotonic() - _KEPT_SECONDS)
        found: dict[tuple[Lane, bytes], Source] = {}
        if self._late:
            for block_hash in hashes:
                late = self._late.pop((host, lane, block_hash), None)
                if late is not None and host.is_at(late.row, late.slot, late.generation):
                    found[lane, block_hash] = late.source
        return found

    def _forget_until(self, landed_at: float) -> None:
        """Those from before that, and what are too many; the oldest are first."""
        while self._late:
            key = next(iter(self._late))
            if len(self._late) <= _MOST and self._late[key].landed_at >= landed_at:
                return
            del self._late[key]

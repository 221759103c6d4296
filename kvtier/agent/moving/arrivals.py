"""When blocks would be in HOST."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvtier.agent.moving.source import Expectation, Source
from kvtier.agent.placing.placement import Placement
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Lane
from kvtier.tiers.size_class import SizeClass


class Arrivals:
    """An estimate that grows with what is asked for: room is made in HOST, then sources read, side
    by side."""

    def __init__(self, placement: Placement, namespace: Namespace) -> None:
        self._placement = placement
        self._namespace = namespace
        self._wanted: Counter[SizeClass] = Counter()
        self._reading: dict[Source, Expectation] = {}

    def add(self, source: Source, lane: Lane, hashes: Sequence[bytes]) -> float:
        """Seconds until these, and all of the same source that were added before, could be read
        from HOST, if they were asked for now."""
        reading = self._reading.get(source)
        if reading is None:
            reading = self._reading[source] = source.expect(self._namespace)
        self._wanted[self._namespace.groups[lane.group]] += len(hashes)
        return self.seconds_until_room() + reading.add(lane, hashes)

    def seconds_until_room(self) -> float:
        """Of it, what making room takes."""
        seconds = self._placement.seconds_until_room
        return sum(seconds(host, count) for host, count in self._wanted.items())

"""HOST as large as memory allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from kvtier.agent.operating.memory_pressure import MemoryState
from kvtier.core.capacity import LEAST_HOST_BYTES
from kvtier.errors import InvalidRequestError
from kvtier.tiers.host import HostTier

log = logging.getLogger(__name__)

_INTERVAL_SECONDS: Final = 2.0
#: Of what is allocated, at a step.
_SHRINK: Final = 1 / 8
#: Of the most that there may be: from nothing to all takes two minutes.
_GROW: Final = 1 / 64
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class SizingOptions:
    """`most_bytes` None is what the share says; seconds are those of the loop."""

    share: float
    reserve_bytes: int
    least_bytes: int
    most_bytes: int | None
    pressure: float
    calm_seconds: float


class MemorySource(Protocol):
    """Where it learns how short memory is."""

    def read(self) -> MemoryState: ...


class AutoSizing:
    """Shrinks HOST when memory is short, and lets it grow slowly when it is not.

    Memory is short when tasks waited for it for a share of the time, when the cgroup came to its
    limit, or when less than the reserve is available. A step down goes from what is allocated, as
    a capacity that is not used helps nobody, and the next one begins when the one before is done.
    When somebody else sets a capacity, that one stays.
    """

    def __init__(
        self,
        host: HostTier,
        options: SizingOptions,
        source: MemorySource,
        resize: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self.options = options
        self.shrunk_count = 0
        #: What it does, and why.
        self.reason = "memory is not short"
        self._host = host
        self._source = source
        self._resize = resize
        self._clock = clock
        self._before = source.read()
        self._read_at = self._calm_since = clock()
        self._capacity_bytes = host.space.capacity_bytes

    @property
    def most_bytes(self) -> int:
        """By what the node and its cgroup have now."""
        return most_bytes(self.options, self._before)

    async def run(self) -> None:
        """Until it is cancelled, or somebody sets a capacity."""
        while True:
            if not self.step():
                return
            await asyncio.sleep(_INTERVAL_SECONDS)

    def step(self) -> bool:
        """Looks, and changes the capacity where it should; False when it is not its any more."""
        if self._host.space.capacity_bytes != self._capacity_bytes:
            self.reason = "somebody set the capacity: it stays"
            log.info("HOST: %s", self.reason)
            return False
        state, now = self._source.read(), self._clock()
        shortage = self._shortage(state, now - self._read_at)
        self._before, self._read_at = state, now
        if shortage:
            self._calm_since = now
            self.reason = shortage
        if self._host.is_shrinking:
            return True
        present = self._capacity_bytes
        if shortage:
            self._set(int(min(present, self._host.space.allocated_bytes) * (1 - _SHRINK)))
        elif present > self.most_bytes:
            self._set(self.most_bytes)
        elif now - self._calm_since >= self.options.calm_seconds:
            self.reason = "memory is not short"
            growth = max(int(self.most_bytes * _GROW), _MIB)
            could = self._host.space.allocated_bytes + state.available_bytes
            if present + growth <= could - self.options.reserve_bytes:
                self._set(present + growth)
        return True

    def _shortage(self, state: MemoryState, seconds: float) -> str:
        """Why memory is short; empty if it is not."""
        stalled = (state.stalled_seconds - self._before.stalled_seconds) / seconds if seconds else 0
        if stalled >= self.options.pressure:
            return f"tasks wait for memory {stalled:.0%} of the time"
        if state.limit_count > self._before.limit_count:
            return "the cgroup has come to its limit"
        if state.available_bytes < self.options.reserve_bytes:
            return f"{state.available_bytes >> 20} MiB are available, less than memory_reserve"
        return ""

    def _set(self, size_bytes: int) -> None:
        size_bytes = max(self.options.least_bytes, min(size_bytes, self.most_bytes))
        size_bytes -= size_bytes % _MIB
        if size_bytes == self._capacity_bytes:
            return
        try:
            self._resize(size_bytes)
        except InvalidRequestError as error:  # tables of its namespaces take more
            self.reason = str(error)
            return
        self.shrunk_count += size_bytes < self._capacity_bytes
        self._capacity_bytes = size_bytes


def most_bytes(options: SizingOptions, state: MemoryState) -> int:
    """How large HOST may become, and how large it begins."""
    share = min(int(state.total_bytes * options.share), state.total_bytes - options.reserve_bytes)
    most = share if options.most_bytes is None else min(share, options.most_bytes)
    most = max(most, options.least_bytes, LEAST_HOST_BYTES)
    return most - most % _MIB

"""The ceiling of what a cache could hit."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from kvtier.sim.reading import Progress
from kvtier.sim.replay import Tally, TierTally
from kvtier.sim.trace import Trace

#: The policy's name in options and results.
BELADY: Final = "belady"
_NEVER: Final = np.iinfo(np.int32).max
_REPORT_REQUESTS = 64


class Belady:
    """Keeps the blocks that are used again soonest, knowing all requests (Belady, IBM Systems
    Journal 1966), and takes in nothing that is used later than all it holds (bypass).

    No policy hits more blocks. Nor does the rule that a block is a hit only after all before it
    change that: a block is used whenever one that continues it is, so it is used again no later,
    and of those that are used again by the same request the deepest goes first.

    Thus what is held of a request when it comes is its beginning, and all of it is next used by
    that request: to know how many blocks are held for each future request is enough.
    """

    def __init__(self, trace: Trace, capacity_blocks: int) -> None:
        self._trace = trace
        self._free = capacity_blocks
        self._held = array("Q", bytes(8 * len(trace)))  # by the request that uses them next
        self._latest: list[int] = []  # a heap of those requests, negative
        self._written_blocks = 0

    def run(self, progress: Progress = lambda done, whole: None) -> Tally:
        """All requests."""
        trace, used = self._trace, TierTally()
        uses = NextUses(trace)
        for index in range(len(trace)):
            hits = self._held[index]
            used.hit_blocks += hits
            used.hit_tokens += hits * trace.block_tokens[index]
            self._use(index, hits, uses)
            if index % _REPORT_REQUESTS == 0:
                progress(index, len(trace))
        used.written_blocks, used.read_blocks = self._written_blocks, used.hit_blocks
        progress(len(trace), len(trace))
        return Tally(trace.requested_blocks, sum(trace.tokens), [used])

    def _use(self, index: int, hits: int, uses: NextUses) -> None:
        """Keeps of a request's blocks what is used again; the first `hits` of them are here."""
        self._held[index] = 0
        self._free += hits
        for request, count in uses.of(index):
            here = min(hits, count)
            hits -= here
            self._hold(request, here)
            if here < count and not self._take_in(request, count - here):
                return

    def _take_in(self, request: int, count: int) -> bool:
        """As many of these blocks as is right; whether that is all."""
        while count:
            if self._free <= 0 and not self._make_room(request, count):
                return False
            taken = min(count, self._free)
            self._hold(request, taken)
            self._written_blocks += taken
            count -= taken
        return True

    def _hold(self, request: int, count: int) -> None:
        if count and not self._held[request]:
            heapq.heappush(self._latest, -request)
        self._held[request] += count
        self._free -= count

    def _make_room(self, request: int, count: int) -> bool:
        """Drops up to so many blocks that are all used after this request; whether there are any"""
        latest = self._latest
        while latest and not self._held[-latest[0]]:
            heapq.heappop(latest)
        if not latest or -latest[0] <= request:
            return False
        dropped = min(count, self._held[-latest[0]])
        self._held[-latest[0]] -= dropped
        self._free += dropped
        return True


class NextUses:
    """For each request, which ones use its blocks next."""

    def __init__(self, trace: Trace) -> None:
        self._pairs = array("i")
        self._ends = array("Q", bytes(8 * (len(trace) + 1)))
        following = np.full(trace.unique_blocks, _NEVER, np.int32)
        for index in range(len(trace) - 1, -1, -1):
            for run in trace.request(index).runs:
                self._note(following[run.start : run.stop])
                following[run.start : run.stop] = index
            self._ends[index] = len(self._pairs)

    def of(self, index: int) -> Iterator[tuple[int, int]]:
        """The next request and how many blocks it uses, from a request's beginning on, without
        those that none uses again."""
        pairs = self._pairs[self._ends[index + 1] : self._ends[index]]
        return zip(pairs[::2], pairs[1::2], strict=True)

    def _note(self, following: npt.NDArray[np.int32]) -> None:
        cuts = [0, *(np.flatnonzero(np.diff(following)) + 1).tolist(), len(following)]
        for first, end in pairwise(cuts):
            if following[first] != _NEVER:
                self._pairs.extend((int(following[first]), end - first))

"""Requests for blocks, as compact as they repeat."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

_NAME_BYTES = 16
_NO_SCOPE = 0


class Request(NamedTuple):
    """One request of a trace: its full blocks as runs of numbers, from the beginning on."""

    seconds: float
    tokens: int
    block_tokens: int
    runs: tuple[range, ...]

    @property
    def block_count(self) -> int:
        return sum(map(len, self.runs))


@dataclass
class Trace:
    """Requests in the order of the file; their blocks have numbers in the order of first use.

    Two requests have a number in common if they have all up to that block in common. What a request
    asks for is mostly what others asked for before, and what is new has consecutive numbers: some
    runs, not thousands of blocks. Seconds never go back.

    A partial block, which ends a request, is never looked up nor stored; where the trace has an id
    for it, it counts as requested and as unique all the same. Tokens include its tokens.
    """

    name: str
    seconds: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    block_tokens: array[int] = field(default_factory=lambda: array("I"))
    unique_blocks: int = 0
    requested_blocks: int = 0
    #: Lines that could not be used.
    left_out: int = 0
    #: The mean of the unique blocks; None where the trace does not say.
    block_bytes: float | None = None
    _bounds: array[int] = field(default_factory=lambda: array("Q"))
    _run_ends: array[int] = field(default_factory=lambda: array("Q", [0]))

    def __len__(self) -> int:
        return len(self.seconds)

    def __iter__(self) -> Iterator[Request]:
        return map(self.request, range(len(self)))

    def request(self, index: int) -> Request:
        """The request of this index."""
        bounds, first, last = self._bounds, self._run_ends[index], self._run_ends[index + 1]
        runs = tuple(
            range(bounds[place], bounds[place + 1]) for place in range(2 * first, 2 * last, 2)
        )
        return Request(self.seconds[index], self.tokens[index], self.block_tokens[index], runs)

    def append(
        self, seconds: float, tokens: int, block_tokens: int, numbers: Sequence[int]
    ) -> None:
        """One more request, whose full blocks have these numbers."""
        self.seconds.append(max(seconds, self.seconds[-1]) if self.seconds else seconds)
        self.tokens.append(tokens)
        self.block_tokens.append(block_tokens)
        if numbers:
            numbered = np.asarray(numbers)
            cuts = [0, *(np.flatnonzero(np.diff(numbered) != 1) + 1).tolist(), len(numbers)]
            for first, end in pairwise(cuts):
                self._bounds.extend((numbers[first], numbers[end - 1] + 1))
        self._run_ends.append(len(self._bounds) // 2)

    @property
    def duration_seconds(self) -> float:
        """From the first request to the last."""
        return self.seconds[-1] - self.seconds[0] if self.seconds else 0.0

    @cached_property
    def hashes(self) -> list[bytes]:
        """What stands for block hashes, by number."""
        return [number.to_bytes(_NAME_BYTES, "little") for number in range(self.unique_blocks)]

    def hashes_of(self, request: Request) -> tuple[bytes, ...]:
        """The hashes of a request's full blocks."""
        hashes: list[bytes] = []
        for run in request.runs:
            hashes += self.hashes[run.start : run.stop]
        return tuple(hashes)


class TraceBuilder:
    """Numbers the blocks of requests, and regroups them into larger ones.

    A block is what its id says after those before it: where a trace's ids are hashes of a block's
    own tokens, blocks with other beginnings are other blocks, as they are for a KV cache.
    """

    def __init__(self, name: str, block_tokens: int | None = None) -> None:
        """`block_tokens` is what they are regrouped to, if given."""
        self._trace = Trace(name)
        self._block_tokens = block_tokens
        self._number: dict[int, int] = {}
        self._number_after: dict[tuple[int, int], int] = {}
        self._parent = array("q")
        self._group: dict[int, int] = {}
        self._scopes: dict[object, int] = {}
        self._bytes = 0

    def add(
        self,
        seconds: float,
        tokens: int,
        block_tokens: int,
        ids: Iterable[int],
        *,
        scope: object = _NO_SCOPE,
        block_bytes: int = 0,
    ) -> None:
        """One request, whose last block may be a partial one. Ids of different scopes are different
        blocks.

        Raises ValueError if blocks of `block_tokens` cannot be regrouped as wanted.
        """
        trace, group = self._trace, self._group_of(block_tokens)
        full, before = tokens // block_tokens, trace.unique_blocks
        named = islice(ids, -(-tokens // block_tokens))
        numbers = self._chain(named, -1 - self._scopes.setdefault(scope, len(self._scopes)))
        if self._block_tokens:
            numbers = self._regrouped(numbers if group == 1 else numbers[:full], group)
            full //= group
        else:
            trace.unique_blocks = len(self._parent)
        trace.requested_blocks += len(numbers)
        self._bytes += group * block_bytes * (trace.unique_blocks - before)
        trace.append(seconds, tokens, group * block_tokens, numbers[:full])

    def _group_of(self, block_tokens: int) -> int:
        wanted = self._block_tokens or block_tokens
        if wanted % block_tokens:
            raise ValueError(
                f"blocks of {block_tokens} tokens cannot be regrouped to {wanted}: "
                "give a multiple of the trace's"
            )
        return wanted // block_tokens

    def _chain(self, ids: Iterable[int], root: int) -> list[int]:
        """A number for each block; `root` stands for what is before the first one."""
        number, parent, numbers, before = self._number, self._parent, list[int](), root
        for each in ids:
            known = number.get(each)
            if known is None:
                number[each] = known = len(parent)
                parent.append(before)
            elif parent[known] != before:
                known = self._number_after.setdefault((before, each), len(parent))
                if known == len(parent):
                    parent.append(before)
            numbers.append(known)
            before = known
        return numbers

    def _regrouped(self, numbers: list[int], group: int) -> list[int]:
        """The last of the blocks that make a larger one stands for all up to it."""
        number = self._group
        larger = [number.setdefault(each, len(number)) for each in numbers[group - 1 :: group]]
        self._trace.unique_blocks = len(number)
        return larger

    def leave_out(self) -> None:
        """Counts a line that cannot be used."""
        self._trace.left_out += 1

    def build(self) -> Trace:
        """What was added; the builder is used up."""
        if self._bytes:
            self._trace.block_bytes = self._bytes / self._trace.unique_blocks
        return self._trace

"""Traces of sessions, made from those of https://github.com/callanjfox/kv-cache-tester."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from kvtier.sim.lines import Line
from kvtier.sim.trace import TraceBuilder

_ID_LIMIT = 1 << 64


class SessionReader:
    """As Mooncake's, with `block_size` in tokens and `hash_ranges`: [[first id, count], ...]."""

    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def add(self, line: Line) -> None:
        tokens, block_tokens = line.count("input_length"), line.positive("block_size")
        ids = chain.from_iterable(_ranges(line))
        self._builder.add(line.seconds("timestamp"), tokens, block_tokens, ids)

    def end(self) -> None:
        pass


def _ranges(line: Line) -> Iterator[range]:
    for each in line.items("hash_ranges"):
        match each:
            case [int(first), int(count)] if first >= 0 <= count and first + count <= _ID_LIMIT:
                yield range(first, first + count)
            case _:
                raise ValueError("hash_ranges is not a list of [first, count]")

"""Traces of Mooncake: https://github.com/kvcache-ai/Mooncake, FAST25 release."""

from __future__ import annotations

from typing import Final

from kvtier.sim.lines import Line
from kvtier.sim.trace import TraceBuilder

_BLOCK_TOKENS: Final = 512


class MooncakeReader:
    """`timestamp` in ms, `input_length` in tokens, `hash_ids` of 512 tokens, the last partial."""

    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def add(self, line: Line) -> None:
        tokens = line.count("input_length")
        block_tokens = line.positive("block_size", _BLOCK_TOKENS)
        self._builder.add(line.seconds("timestamp"), tokens, block_tokens, line.ids("hash_ids"))

    def end(self) -> None:
        pass

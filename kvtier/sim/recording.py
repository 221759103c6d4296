"""What `kvtier record` writes."""

from __future__ import annotations

from typing import Final

from kvtier.sim.lines import Line
from kvtier.sim.trace import TraceBuilder

VERSION: Final = 1
#: The field of the first line that says what the file is; its value is the version.
HEADER: Final = "kvtier_recording"


class RecordingReader:
    """`timestamp` in ms, `namespace`, `group`, `shard`, and `hash_ids` of full blocks.

    `block_tokens` and `block_bytes` are a block's; `position` is the index of the first block in
    its sequence. A request that does not begin at the beginning (position > 0) is skipped: what it
    asks for belongs to a sequence that others of its lines ask for from the beginning on.
    """

    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def add(self, line: Line) -> None:
        if HEADER in line.document:
            _check_header(line)
            return
        ids, block_tokens = line.ids("hash_ids"), line.positive("block_tokens")
        if line.count("position", 0):
            return
        self._builder.add(
            line.seconds("timestamp"),
            len(ids) * block_tokens,
            block_tokens,
            ids,
            scope=(line.text("namespace"), line.count("group", 0), line.count("shard", 0)),
            block_bytes=line.count("block_bytes", 0),
        )


def _check_header(line: Line) -> None:
    if line.document[HEADER] != VERSION:
        raise ValueError(f"{HEADER} is {line.document[HEADER]!r}: this kvtier reads {VERSION}")

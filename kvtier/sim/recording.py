"""What `kvtier record` writes."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from kvtier.sim.lines import Line
from kvtier.sim.trace import TraceBuilder

VERSION: Final = 1
#: The field of the first line that says what the file is; its value is the version.
HEADER: Final = "kvtier_recording"
_PARTS_SECONDS: Final = 1.0

_Scope = tuple[str, int, int]


class _Open(NamedTuple):
    """A request that may go on."""

    seconds: float
    block: tuple[int, int]
    ids: list[int]


class RecordingReader:
    """`timestamp` in ms, `namespace`, `group`, `shard`, and `hash_ids` of full blocks.

    `block_tokens` and `block_bytes` are a block's; `position` is the index of the first block in
    its sequence. What goes on, within a second, where the line before of the same namespace, group
    and shard ended is one request with it. Other lines that do not begin at the beginning, as those
    of windows, are left out, and counted.
    """

    def __init__(self, builder: TraceBuilder, block_tokens: int | None = None) -> None:
        """`block_tokens` is what blocks have that do not say it: a namespace need not know."""
        self._builder = builder
        self._block_tokens = block_tokens
        self._open: dict[_Scope, _Open] = {}

    def add(self, line: Line) -> None:
        if HEADER in line.document:
            _check_header(line)
            return
        scope = (line.text("namespace"), line.count("group", 0), line.count("shard", 0))
        seconds, ids = line.seconds("timestamp"), line.ids("hash_ids")
        tokens = line.count("block_tokens") or self._block_tokens
        if not tokens:
            raise ValueError(
                "block_tokens is 0: the namespace does not say how many tokens a block has; "
                "give --block-tokens"
            )
        block = (tokens, line.count("block_bytes", 0))
        self._close(seconds - _PARTS_SECONDS)
        before = self._open.get(scope)
        if position := line.count("position", 0):
            if before is not None and (len(before.ids), before.block) == (position, block):
                before.ids.extend(ids)
            else:
                self._builder.leave_out()
            return
        if before is not None:
            self._add(scope, self._open.pop(scope))
        self._open[scope] = _Open(seconds, block, ids)

    def end(self) -> None:
        self._close(math.inf)

    def _close(self, until_seconds: float) -> None:
        """What came before cannot go on any more."""
        while self._open:
            scope = next(iter(self._open))
            if self._open[scope].seconds >= until_seconds:
                return
            self._add(scope, self._open.pop(scope))

    def _add(self, scope: _Scope, request: _Open) -> None:
        block_tokens, block_bytes = request.block
        self._builder.add(
            request.seconds,
            len(request.ids) * block_tokens,
            block_tokens,
            request.ids,
            scope=scope,
            block_bytes=block_bytes,
        )


def _check_header(line: Line) -> None:
    if line.document[HEADER] != VERSION:
        raise ValueError(f"{HEADER} is {line.document[HEADER]!r}: this kvtier reads {VERSION}")

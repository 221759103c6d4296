"""Traces from files, whatever their format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvtier.errors import ConfigError
from kvtier.sim.lines import Line, LineFile
from kvtier.sim.mooncake import MooncakeReader
from kvtier.sim.recording import HEADER, RecordingReader
from kvtier.sim.session_trace import SessionReader
from kvtier.sim.trace import Trace, TraceBuilder

#: Called with how much is done, and how much there is to do.
Progress = Callable[[int, int], None]
_REPORT_LINES = 256


class Reader(Protocol):
    """One format; what is wrong with a line is a ValueError."""

    def add(self, line: Line) -> None: ...

    def end(self) -> None:
        """There is no further line."""
        ...


def read_trace(
    path: Path, block_tokens: int | None = None, progress: Progress = lambda done, whole: None
) -> Trace:
    """The trace in a file, its blocks regrouped to `block_tokens` if that is given; those of a
    recording that says nothing of their tokens have so many.

    Raises ConfigError, with the file and the line, for what it cannot use.
    """
    builder, reader = TraceBuilder(path.name, block_tokens), None
    file = LineFile(path)
    for line in file:
        try:
            reader = reader or _reader(line, builder, block_tokens)
            reader.add(line)
        except ValueError as error:
            raise file.error(str(error)) from error
        if line.number % _REPORT_LINES == 0:
            progress(file.position, file.size)
    try:
        if reader is not None:
            reader.end()
    except ValueError as error:
        raise file.error(str(error)) from error
    trace = builder.build()
    if not trace.requested_blocks:
        raise ConfigError(f"{path}: no request for a full block")
    progress(file.size, file.size)
    return trace


def _reader(first: Line, builder: TraceBuilder, block_tokens: int | None) -> Reader:
    """For the format that the first line has."""
    if HEADER in first.document:
        return RecordingReader(builder, block_tokens)
    if "hash_ranges" in first.document:
        return SessionReader(builder)
    if "hash_ids" in first.document:
        return MooncakeReader(builder)
    raise ValueError(
        "not a trace: its first line has neither hash_ids (Mooncake), nor hash_ranges (sessions), "
        f"nor {HEADER} (kvtier record)"
    )

"""`kvtier record`: what workers ask for, as a file that `kvtier simulate` replays."""

from __future__ import annotations

import gzip
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import print_json
from kvtier.cli.duration import parse_duration
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    NamespaceOption,
    YesOption,
)
from kvtier.cli.text import plural
from kvtier.errors import DeadlineExceededError, InvalidRequestError

if TYPE_CHECKING:
    from kvtier.v1.cache_admin_pb2 import RecordedRequest

VERSION: Final = 1
_ERASE: Final = "\r\x1b[K"
_REDRAW_SECONDS: Final = 0.2


def record(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines; compressed if it ends in .gz.")
    ],
    namespace: NamespaceOption = "",
    duration: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Such as 90s or 1h30m; else until interrupted."),
    ] = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Record what workers look for.

    Hashes, sizes and times, no tokens. Interrupting the command ends the recording; every line that
    is written is whole. An existing file is replaced only with --yes. Of each block hash the first
    8 bytes are kept.

    Example: kvtier record day.jsonl.gz --duration 24h
    """
    seconds = None if duration is None else _parsed(duration)
    if path.exists() and not yes:
        raise InvalidRequestError(f"{path} exists: pass --yes to replace it")
    with admin(address, DEFAULT_TIMEOUT_SECONDS) as client:
        client.get_stats(namespace)  # an agent that answers; a recording has no deadline
        requests = client.record_requests(namespace, seconds)  # before there is a file
        with Interrupts() as interrupts, _opened(path) as text:
            file = RecordingFile(text)
            try:
                _follow(requests, file, interrupts, is_quiet=as_json)
            except DeadlineExceededError:
                if seconds is None:
                    raise
    if as_json:
        print_json(
            {"requests": file.request_count, "blocks": file.block_count, "lost": file.lost_count}
        )
    else:
        typer.echo(f"recorded {file.said}")


def _parsed(duration: str) -> float:
    try:
        return parse_duration(duration)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--duration") from error


def _opened(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "wt", encoding="ascii")
        return path.open("w", encoding="ascii")
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error


def _follow(
    requests: Iterator[RecordedRequest],
    file: RecordingFile,
    interrupts: Interrupts,
    *,
    is_quiet: bool,
) -> None:
    """Until the requests end, or somebody interrupts."""
    is_drawn = not is_quiet and sys.stderr.isatty()
    drawn_at = 0.0
    try:
        with suppress(KeyboardInterrupt):
            for request in requests:
                with interrupts.held():
                    file.write(request)
                if is_drawn and time.monotonic() - drawn_at >= _REDRAW_SECONDS:
                    drawn_at = time.monotonic()
                    typer.echo(f"{_ERASE}{file.said}", err=True, nl=False)
    finally:
        if is_drawn:
            typer.echo(_ERASE, err=True, nl=False)


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt, but never within a line. A context manager.

    A compressed file that is interrupted between compressing and writing cannot be read any more.
    """

    def __init__(self) -> None:
        self._is_held = self._is_due = False
        self._before: dict[int, Any] = {}

    def _on_signal(self, _number: int, _frame: object) -> None:
        if not self._is_held:
            raise KeyboardInterrupt
        self._is_due = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """They wait for the end of the block."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_due:
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class RecordingFile:
    """A recording, flushed line by line: whoever kills the writer leaves whole lines.

    A line for the version, then one for each request.
    """

    def __init__(self, file: IO[str]) -> None:
        self.request_count = self.block_count = self.lost_count = 0
        self._file = file
        self._started = time.time()
        self._last_ms = 0
        self._write({"kvtier_recording": VERSION})

    @property
    def said(self) -> str:
        """`3 requests, 48 blocks`, and how many are missing."""
        text = f"{plural(self.request_count, 'request')}, {plural(self.block_count, 'block')}"
        return f"{text}, {self.lost_count:,} lost" if self.lost_count else text

    def write(self, request: RecordedRequest) -> None:
        """Times never run backwards, whatever clocks do."""
        ms = (request.time.ToNanoseconds() - int(self._started * 1e9)) // 10**6
        self._last_ms = max(self._last_ms, ms)
        self._write(
            {
                "timestamp": self._last_ms,
                "namespace": request.namespace,
                "block_tokens": request.block_tokens,
                "block_bytes": request.block_bytes,
                "group": request.group,
                "shard": request.shard,
                "position": request.position,
                "hash_ids": list(request.hashes),
            }
        )
        self.request_count += 1
        self.block_count += len(request.hashes)
        self.lost_count += request.lost_count

    def _write(self, document: dict[str, object]) -> None:
        self._file.write(json.dumps(document, separators=(",", ":")) + "\n")
        self._file.flush()

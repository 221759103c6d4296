"""Files of one JSON object a line, plain or gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from kvtier.errors import ConfigError

_GZIP: Final = b"\x1f\x8b"
_ID_LIMIT: Final = 1 << 64


class Line(NamedTuple):
    """One object of a file. What asks for a field raises ValueError, naming it, if it is wrong."""

    number: int
    document: dict[str, Any]

    def count(self, field: str, default: int | None = None) -> int:
        """A whole number, not negative."""
        value = self.document.get(field, default)
        if value is None:
            raise ValueError(f"{field} is missing")
        if type(value) is not int or value < 0:
            raise ValueError(f"{field} is not a whole number of at least 0: {_short(value)}")
        return value

    def positive(self, field: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        if not (value := self.count(field, default)):
            raise ValueError(f"{field} is 0")
        return value

    def seconds(self, field: str) -> float:
        """Of milliseconds."""
        value = self.document.get(field)
        if type(value) not in (int, float) or not 0 <= cast(float, value) < float("inf"):
            raise ValueError(f"{field} is not a number of milliseconds: {_short(value)}")
        return cast(float, value) / 1000

    def ids(self, field: str) -> list[int]:
        """Numbers below 2^64."""
        values = self.items(field)
        if any(type(each) is not int or not 0 <= each < _ID_LIMIT for each in values):
            raise ValueError(f"{field} has something else than whole numbers below 2^64")
        return values

    def items(self, field: str) -> list[Any]:
        value = self.document.get(field)
        if not isinstance(value, list):
            raise ValueError(f"{field} is not a list: {_short(value)}")
        return value

    def text(self, field: str) -> str:
        value = self.document.get(field)
        if not isinstance(value, str):
            raise ValueError(f"{field} is not a text: {_short(value)}")
        return value


class LineFile:
    """The objects of a file, one after the other; empty lines are left out.

    `position` is how much of the file has been read, `size` all of it, in bytes as stored. Raises
    ConfigError, with the file and the line, for what cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._text: Iterable[bytes]
        self.path = path
        self.number = 0
        try:
            self._raw = path.open("rb")
            self.size = path.stat().st_size
            is_packed = self._raw.peek(2).startswith(_GZIP)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        self._text = gzip.GzipFile(fileobj=self._raw) if is_packed else self._raw

    @property
    def position(self) -> int:
        return self.size if self._raw.closed else self._raw.tell()

    def __iter__(self) -> Iterator[Line]:
        with self._raw:
            try:
                for text in self._text:
                    self.number += 1
                    if text.strip():
                        yield Line(self.number, self._parse(text))
            except (OSError, EOFError, zlib.error) as error:
                raise self.error(f"cannot be read further: {error}") from error

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(f"not JSON: {error}") from error
        if not isinstance(document, dict):
            raise self.error("not a JSON object")
        return document

    def error(self, message: str) -> ConfigError:
        """Of the line that was read last."""
        return ConfigError(f"{self.path}:{self.number}: {message}")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."

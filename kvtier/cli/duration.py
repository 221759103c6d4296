"""Durations as people write them."""

from __future__ import annotations

import re
from typing import Final

from kvtier.errors import InvalidRequestError

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_TOO_LONG_SECONDS: Final = 11000.0 * 86400
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `1h30m`, `2d`; without a unit, seconds.

    Raises ValueError for anything else, and for nothing at all.
    """
    rest, seconds = text.strip().lower(), 0.0
    while match := _PART.match(rest):
        number, unit = match.groups()
        if unit not in _SECONDS:
            break
        seconds += float(number) * _SECONDS[unit]
        rest = rest[match.end() :]
    if rest or seconds <= 0:
        raise ValueError(f"{text!r} is no duration; write one such as 90s, 30m, 1h30m or 2d")
    return seconds


def seconds_of(text: str, option: str) -> float:
    """The same for an option. Raises InvalidRequestError that names it."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise InvalidRequestError(f"{option}: {error}") from error
    if seconds >= _TOO_LONG_SECONDS:
        raise InvalidRequestError(f"{option} {text}: it must be below 11000d")
    return seconds

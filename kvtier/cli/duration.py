"""Times as people write them."""

from __future__ import annotations

import re
from typing import Final

from kvtier.errors import InvalidRequestError

_UNITS: Final = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 24 * 3600}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d)?")


def seconds_of(text: str, option: str) -> float:
    """`90`, `90s`, `30m`, `1.5h`, `7d`. Raises InvalidRequestError that names the option."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidRequestError(f"{option} {text}: write a time as 90s, 30m, 1h or 7d")
    seconds = float(match[1]) * _UNITS[match[2] or ""]
    if not 0 < seconds < 1e9:
        raise InvalidRequestError(f"{option} {text}: it must be above 0, and below 11000d")
    return seconds

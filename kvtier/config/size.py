"""Sizes as people write them: `64GiB`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

_UNITS: Final = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1, "": 1}
_PATTERN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_ALLOWED: Final = "write 64GiB, 512MiB, 4KiB or a number of bytes"


def parse_size(value: object) -> int:
    """Bytes of `64GiB`, `1.5TiB`, `4096` or 4096; anything else is a ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _PATTERN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"not a size; {_ALLOWED}")
    size = Fraction(match[1]) * _UNITS[match[2]]
    if size.denominator != 1:
        raise ValueError(f"not a whole number of bytes; {_ALLOWED}")
    return int(size)


def format_size(size_bytes: int) -> str:
    """The shortest form that `parse_size` reads back as exactly this number."""
    for unit, factor in _UNITS.items():
        if factor > 1 and size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
]


def at_least(minimum_bytes: int) -> AfterValidator:
    """For a Size: refuses smaller ones, and names the bound as people write it."""

    def check(size_bytes: int) -> int:
        if size_bytes < minimum_bytes:
            raise ValueError(f"must be at least {format_size(minimum_bytes)}")
        return size_bytes

    return AfterValidator(check)


def at_most(maximum_bytes: int) -> AfterValidator:
    """For a Size: refuses larger ones, likewise."""

    def check(size_bytes: int) -> int:
        if size_bytes > maximum_bytes:
            raise ValueError(f"must be at most {format_size(maximum_bytes)}")
        return size_bytes

    return AfterValidator(check)

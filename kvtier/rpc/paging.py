"""Long answers in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from kvtier.errors import InvalidRequestError

T = TypeVar("T")

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_LONGEST_TOKEN = 18


def page_size(size: int) -> int:
    """What was asked for, or the default for 0."""
    if size < 0 or size > _LARGEST_PAGE:
        raise InvalidRequestError(f"page_size is {size}; it must be 0 to {_LARGEST_PAGE}")
    return size or _DEFAULT_PAGE


def page_of(items: Sequence[T], size: int, token: str) -> tuple[Sequence[T], str]:
    """A page and the token of the next; items keep their order between calls."""
    count = page_size(size)
    if token and not (token.isdecimal() and len(token) <= _LONGEST_TOKEN):
        raise InvalidRequestError("page_token is not one that this agent gave")
    start = int(token or 0)
    stop = start + count
    return items[start:stop], str(stop) if stop < len(items) else ""

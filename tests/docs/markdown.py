"""What generated pages have in common."""

from __future__ import annotations

import re

_CODE = re.compile(r"(`[^`]*`)")


def escaped(text: str) -> str:
    """Angle brackets outside of code are no tags."""
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;") for part in _CODE.split(text)
    )


def cell(text: str) -> str:
    """For a table: one line."""
    return " ".join(escaped(text).split()).replace("|", "\\|")


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

"""Passwords, out of what is shown."""

from __future__ import annotations

import re
from typing import Final

#: The password of `scheme://user:password@host`, also where the scheme is mistyped or missing, and
#: of `password=`. It may hold any character, so all up to the last @ goes.
_PASSWORD: Final = re.compile(r"(?<=:)(?!//).+(?=@)|(?<=password=)[^&\s]+", re.DOTALL)


def redacted(text: str) -> str:
    """The text with stars for a password; rather too much of it than too little."""
    return _PASSWORD.sub("***", text)

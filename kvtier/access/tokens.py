"""Bearer tokens. The agent knows only their hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

_BYTES: Final = 32
#: What cannot be guessed needs no slow hash, so nothing else counts as a token.
_TOKEN: Final = re.compile(r"kvt_[A-Za-z0-9_-]{43}")
TOKEN_FORM: Final = "kvt_ and 43 letters, as `kvtier token` makes them"


def make_token() -> str:
    """256 random bits."""
    return f"kvt_{secrets.token_urlsafe(_BYTES)}"


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def token_digest(token: str) -> bytes:
    """SHA-256."""
    return hashlib.sha256(token.encode()).digest()

"""Where to listen on TCP."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Strict

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_MOST_PORT: Final = 65535


def host_and_port(address: str) -> tuple[str, int]:
    """Of `HOST:PORT`; an IPv6 address stands in brackets. Raises ValueError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > _MOST_PORT:
        raise ValueError(
            "write HOST:PORT, for example 127.0.0.1:9797, [::1]:9797 or 0.0.0.0:9797 (all "
            "interfaces), or null"
        )
    return match[1].strip("[]"), int(match[2])


def _is_address(address: str) -> str:
    host_and_port(address)
    return address


TcpAddress = Annotated[str, Strict(), AfterValidator(_is_address)]

"""The section of the agent's numbers over HTTP."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from kvtier.config.section import Count, Section, Text

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_MOST_PORT: Final = 65535


def host_and_port(address: str) -> tuple[str, int]:
    """Of `HOST:PORT`; an IPv6 address stands in brackets. Raises ValueError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > _MOST_PORT:
        raise ValueError(
            "write HOST:PORT, for example 127.0.0.1:9797, [::1]:9797, 0.0.0.0:9797 (all "
            "interfaces), or null"
        )
    return match[1].strip("[]"), int(match[2])


def _is_address(address: str) -> str:
    host_and_port(address)
    return address


class MetricsConfig(Section):
    """What Prometheus and probes may ask."""

    address: Annotated[Text, AfterValidator(_is_address)] | None = "127.0.0.1:9797"
    """None: nothing is listened on."""
    max_namespaces: Annotated[Count, Field(le=256)] = 32
    """Names with series of their own."""

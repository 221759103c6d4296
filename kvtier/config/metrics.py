"""The section of the agent's numbers over HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvtier.config.section import Count, Section
from kvtier.config.tcp_address import TcpAddress


class MetricsConfig(Section):
    """What Prometheus and probes may ask."""

    address: TcpAddress | None = "127.0.0.1:9797"
    """None: nothing is listened on."""
    max_namespaces: Annotated[Count, Field(le=256)] = 32
    """Names with series of their own."""

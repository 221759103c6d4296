"""A HOST tier whose capacity is `auto`."""

from __future__ import annotations

import time

from kvtier.agent.operating.auto_sizing import AutoSizing, SizingOptions, most_bytes
from kvtier.agent.operating.memory_pressure import KernelMemory
from kvtier.agent.operating.resizing import Resizing
from kvtier.config import AgentConfig
from kvtier.core.block import Tier
from kvtier.tiers.host import HostTier


def host_capacity_bytes(config: AgentConfig) -> int:
    """What HOST begins with."""
    capacity = config.tiers.host.capacity
    if isinstance(capacity, int):
        return capacity
    return most_bytes(_options(config), KernelMemory().read())


def auto_sizing(config: AgentConfig, host: HostTier, resizing: Resizing) -> AutoSizing | None:
    """None if the configuration names a capacity."""
    if isinstance(config.tiers.host.capacity, int):
        return None
    return AutoSizing(
        host,
        _options(config),
        KernelMemory(),
        lambda size_bytes: resizing.resize(Tier.HOST, size_bytes),
        time.monotonic,
    )


def _options(config: AgentConfig) -> SizingOptions:
    host = config.tiers.host
    return SizingOptions(
        share=host.auto.share,
        reserve_bytes=host.memory_reserve,
        least_bytes=host.auto.least,
        most_bytes=host.auto.most,
        pressure=host.auto.pressure,
        calm_seconds=host.auto.calm,
    )

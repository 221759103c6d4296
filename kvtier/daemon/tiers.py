"""The tiers that a configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from kvtier.agent.operating.history import History
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.config import AgentConfig
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.daemon.cluster import cluster_options, cluster_storage, codec_of
from kvtier.daemon.settings import disk_settings
from kvtier.daemon.sizing import host_capacity_bytes
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.host import HostTier
from kvtier.tiers.slot_tier import SlotTier


def new_host(config: AgentConfig) -> HostTier:
    host = config.tiers.host
    return HostTier(host_capacity_bytes(config), policy=host.policy, admission=host.admission)


def new_disk(config: AgentConfig, host: HostTier, io: BlockIO | None) -> Disk | None:
    """None without a path."""
    return Disk(disk_settings(config), host, io) if config.tiers.disk.paths else None


def new_cluster(
    config: AgentConfig, host: HostTier, describe: Callable[[], NodeRecord]
) -> Cluster | None:
    """None without a URL."""
    if not config.tiers.cluster.url:
        return None
    return Cluster(
        cluster_storage(config),
        cluster_options(config),
        host,
        codec_of=lambda label: codec_of(config, label),
        describe=describe,
    )


def new_history(
    config: AgentConfig, tiers: Iterable[SlotTier], disk: Disk | None, cluster: Cluster | None
) -> History | None:
    """What leaves these tiers, or is not let in; None if nothing is to be kept."""
    if not config.history.blocks:
        return None
    history = History(config.history.blocks, time.time)
    for tier in tiers:
        history.listen(tier)
    if disk:
        disk.writer.on_refused = partial(
            history.note_refusals, cause=Cause.ADMISSION, tier=Tier.DISK
        )
    if cluster:
        cluster.reader.on_damaged = history.note_damaged_value
    return history

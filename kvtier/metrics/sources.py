"""Where the numbers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtier.access.listeners import Listeners
from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.serving.admission import Admission
from kvtier.agent.serving.pins import Pins
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.agent.tiers.gpu import Gpu
from kvtier.core.lease import LeaseTable
from kvtier.rpc.call_counts import CallCounts
from kvtier.tiers.host import HostTier


@dataclass(frozen=True)
class Sources:
    """Parts of the agent, which the event loop owns. `why_not_ready` is empty when it is ready."""

    version: str
    host: HostTier
    mover: Mover
    gpu: Gpu
    disk: Disk | None
    cluster: Cluster | None
    namespaces: Namespaces
    leases: LeaseTable
    pins: Pins
    promotion: Promotion
    admission: Admission
    calls: CallCounts
    listeners: Listeners
    memory_reserve_bytes: int
    why_not_ready: Callable[[], str]

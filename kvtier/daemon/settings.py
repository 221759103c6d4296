"""What the configuration says, as the parts of an agent want it."""

from __future__ import annotations

import os

from kvtier.agent.demotion import WritePolicy
from kvtier.agent.disk import DiskSettings
from kvtier.agent.grants import LeaseLimits
from kvtier.agent.sessions import ANY_TENANT, Access, AccessRule
from kvtier.config import AgentConfig


def disk_settings(config: AgentConfig) -> DiskSettings:
    disk = config.tiers.disk
    return DiskSettings(
        paths=disk.paths,
        capacity_bytes=disk.capacity,
        policy=disk.policy,
        write_policy=WritePolicy(disk.write_policy),
        after_hits=disk.write_after_hits,
        min_free_bytes=disk.min_free,
        depth=disk.io_depth,
        timeout_seconds=disk.io_timeout,
        max_in_flight_bytes=disk.max_in_flight,
        scrub_bytes_per_second=disk.scrub_rate,
    )


def lease_limits(config: AgentConfig) -> LeaseLimits:
    return LeaseLimits(
        default_seconds=config.leases.default_seconds,
        max_seconds=config.leases.max_seconds,
        max_hold_seconds=config.leases.max_hold_seconds,
        max_share=config.leases.max_share,
    )


def access_rules(config: AgentConfig) -> list[AccessRule]:
    if not config.workers:
        return [AccessRule(tenants=("*",), uid=os.geteuid())]
    return [AccessRule(tuple(rule.tenants), rule.uid, rule.gid) for rule in config.workers]


def stream_access(config: AgentConfig) -> Access | None:
    """What peers may use who did not attach; None: nothing.

    The modes of the socket are all that keeps others out then. Where they let in more than the
    agent's own user, `workers` says who may do what, and that needs the uid of an attached peer.
    """
    tenants = config.streams.tenants
    if tenants is None:
        is_private = not config.workers and config.socket_group is None
        tenants = (ANY_TENANT,) if is_private else ()
    return Access(frozenset(tenants)) if tenants else None

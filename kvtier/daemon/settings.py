"""What the configuration says, as the parts of an agent want it."""

from __future__ import annotations

import os

from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.operating.warming import WarmingOptions
from kvtier.agent.serving.admission import AdmissionLimits
from kvtier.agent.serving.pins import PinLimits
from kvtier.agent.serving.prefetching import PrefetchOptions
from kvtier.agent.sessions.grants import LeaseLimits
from kvtier.agent.sessions.sessions import ANY_TENANT, Access, AccessRule
from kvtier.agent.tiers.device import DeviceOptions
from kvtier.agent.tiers.disk import DiskSettings
from kvtier.config import AgentConfig
from kvtier.core.block import Tier
from kvtier.core.rules import NamespaceRule, Quota


def disk_settings(config: AgentConfig) -> DiskSettings:
    disk = config.tiers.disk
    return DiskSettings(
        paths=disk.paths,
        capacity_bytes=disk.capacity,
        policy=disk.policy,
        admission=disk.admission,
        write_policy=WritePolicy(disk.write_policy),
        after_hits=disk.write_after_hits,
        min_free_bytes=disk.min_free,
        depth=disk.io_depth,
        timeout_seconds=disk.io_timeout,
        max_in_flight_bytes=disk.max_in_flight,
        scrub_bytes_per_second=disk.scrub_rate,
    )


def admission_limits(config: AgentConfig) -> AdmissionLimits:
    limits = config.limits
    return AdmissionLimits(
        calls=limits.max_calls,
        blocks=limits.max_blocks,
        size_bytes=limits.max_in_flight,
        streams=config.streams.max_streams,
        session_share=limits.max_session_share,
    )


def device_options(config: AgentConfig) -> dict[str, DeviceOptions]:
    """By the device's name."""
    gpu = config.tiers.gpu
    return {
        each.device: DeviceOptions(each.capacity, gpu.policy, gpu.admission) for each in gpu.devices
    }


def lease_limits(config: AgentConfig) -> LeaseLimits:
    return LeaseLimits(
        default_seconds=config.leases.default_seconds,
        max_seconds=config.leases.max_seconds,
        max_hold_seconds=config.leases.max_hold_seconds,
        max_share=config.leases.max_share,
    )


def pin_limits(config: AgentConfig) -> PinLimits:
    return PinLimits(
        max_share=config.pins.max_share,
        max_namespace_share=config.pins.max_namespace_share,
        max_seconds=config.pins.max_seconds,
        max_pins=config.pins.max_pins,
    )


def namespace_rules(config: AgentConfig) -> list[NamespaceRule]:
    return [
        NamespaceRule(
            pattern,
            rule.ttl,
            {
                Tier.HOST: Quota(rule.host.limit, rule.host.guaranteed),
                Tier.DISK: Quota(rule.disk.limit, rule.disk.guaranteed),
            },
        )
        for pattern, rule in config.namespaces.items()
    ]


def prefetch_options(config: AgentConfig) -> PrefetchOptions:
    prefetch = config.prefetch
    return PrefetchOptions(
        max_in_flight_bytes=prefetch.max_in_flight,
        max_share=prefetch.max_share,
        read_ahead_blocks=prefetch.read_ahead,
    )


def warming_options(config: AgentConfig) -> WarmingOptions:
    prefetch = config.prefetch
    return WarmingOptions(
        is_predictive=prefetch.predictive,
        within_seconds=prefetch.predict_seconds,
        least_chance=prefetch.predict_chance,
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

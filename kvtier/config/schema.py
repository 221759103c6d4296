"""Every key of the agent's configuration, with its default and its bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from kvtier.config.events import EventsConfig
from kvtier.config.listen import ListenConfig
from kvtier.config.metrics import MetricsConfig
from kvtier.config.namespaces import NamespaceRuleConfigs, check_guarantees
from kvtier.config.section import Count, Seconds, Section, Share, check_tenants
from kvtier.config.size import Size, at_least
from kvtier.config.tiers import TiersConfig
from kvtier.sockets import (
    ADMIN_SOCKET,
    ATTACH_SOCKET,
    MAX_SOCKET_PATH_BYTES,
    WORKER_SOCKET,
    default_socket_dir,
)

LayoutConflict = Literal["warn", "reject"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

PosixId = Annotated[int, Strict(), Field(ge=0, lt=2**32 - 1)]

_LONGEST_PIN_SECONDS: Final = 10 * 365.0 * 24 * 3600


class WorkerRule(Section):
    """Which tenants' namespaces the workers of one uid, or of one gid, may open."""

    uid: PosixId | None = None
    gid: PosixId | None = None
    tenants: tuple[str, ...] = ("*",)

    @field_validator("tenants")
    @classmethod
    def _tenants_have_names(cls, tenants: tuple[str, ...]) -> tuple[str, ...]:
        if not tenants:
            raise ValueError("write at least one")
        check_tenants(tenants)
        return tenants

    @model_validator(mode="after")
    def _names_one_identity(self) -> WorkerRule:
        if (self.uid is None) == (self.gid is None):
            raise ValueError("a rule has either uid or gid")
        return self


class LimitsConfig(Section):
    """Beyond these, calls are refused before any work is done."""

    max_batch_blocks: Annotated[Count, Field(le=65536)] = 8192
    max_sessions: Count = 1024
    max_namespaces: Count = 1024
    max_calls: Count = 256
    """In flight, of all workers together: so many that move data, and so many others."""
    max_blocks: Count = 2**17
    """That these calls ask for."""
    max_in_flight: Annotated[Size, at_least(2**20)] = 64 * 2**30
    """Bytes of these blocks."""
    max_session_share: Share = 0.5
    """Of each of these, and of streams.max_streams."""


class LeaseConfig(Section):
    """How long, and how much, a session may keep from reuse."""

    default_seconds: Seconds = 10.0
    max_seconds: Seconds = 60.0
    max_hold_seconds: Seconds = 10.0
    max_share: Share = 0.5
    """Of HOST's capacity: leased, held, reserved and quarantined slots of one session."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> LeaseConfig:
        if self.default_seconds > self.max_seconds:
            raise ValueError(
                f"default_seconds ({self.default_seconds:g}) may not exceed "
                f"max_seconds ({self.max_seconds:g})"
            )
        return self


class PinConfig(Section):
    """How much, and for how long, operators may keep from eviction."""

    max_share: Share = 0.5
    """Of each tier's capacity: all pins together."""
    max_namespace_share: Share = 0.25
    """Of each tier's capacity: the pins of one namespace."""
    max_seconds: Annotated[Seconds, Field(le=_LONGEST_PIN_SECONDS)] = 30.0 * 24 * 3600
    max_pins: Count = 1024


class StreamsConfig(Section):
    """Bytes of blocks over gRPC, for workers without shared memory."""

    max_streams: Count = 32
    """At one time, of all workers together."""
    stall_seconds: Seconds = 30.0
    """A stream whose client takes or sends nothing for so long is ended."""
    session_seconds: Seconds = 60.0
    """A session without shared memory lives for so long after its last call."""
    tenants: tuple[str, ...] | None = None
    """Whose namespaces may be opened without attaching. None: all, if nobody but the agent's own
    user can connect, else none."""

    @field_validator("tenants")
    @classmethod
    def _tenants_have_names(cls, tenants: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_tenants(tenants or ())
        return tenants


class HistoryConfig(Section):
    """What is remembered of blocks that are not here any more, and of requests."""

    blocks: Annotated[int, Strict(), Field(ge=0, le=2**28)] = 2**20
    """0: nothing is."""
    requests: Annotated[int, Strict(), Field(ge=0, le=2**14)] = 1024
    """What was asked for by the last requests that workers named. 0: nothing is."""


class PrefetchConfig(Section):
    """Blocks that come to HOST ahead of use, from all slower tiers together."""

    max_in_flight: Annotated[Size, at_least(2**20)] = 64 * 2**20
    """Being read at one time."""
    max_share: Share = 0.25
    """Of HOST's capacity: blocks that came ahead of use and were not used yet."""
    read_ahead: Annotated[int, Strict(), Field(ge=0, le=512)] = 0
    """Blocks that come after what is loaded or prefetched, if they were written with it."""
    predictive: Annotated[bool, Strict()] = False
    """Bring chains that the policy of DISK expects back."""
    predict_seconds: Annotated[Seconds, Field(le=3600)] = 30.0
    """They come back within so long,"""
    predict_chance: Share = 0.5
    """with at least this probability."""


class LogConfig(Section):
    """The agent's log, on stderr."""

    level: LogLevel = "info"
    format: LogFormat = "text"


class AgentConfig(Section):
    """The configuration of one agent."""

    socket_dir: Path = Field(default_factory=lambda: default_socket_dir(os.environ))
    socket_group: int | str | None = None
    """May use the workers' sockets too; by name or gid."""
    workers: tuple[WorkerRule, ...] = ()
    """Empty: only workers of the agent's own uid, all tenants."""
    listen: ListenConfig = ListenConfig()
    layout_conflict: LayoutConflict = "warn"
    limits: LimitsConfig = LimitsConfig()
    leases: LeaseConfig = LeaseConfig()
    pins: PinConfig = PinConfig()
    streams: StreamsConfig = StreamsConfig()
    movers: Annotated[Count, Field(le=64)] = 2
    tiers: TiersConfig = TiersConfig()
    history: HistoryConfig = HistoryConfig()
    events: EventsConfig = EventsConfig()
    namespaces: NamespaceRuleConfigs = Field(default_factory=dict)
    """By pattern; the first that matches counts."""
    prefetch: PrefetchConfig = PrefetchConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    @field_validator("namespaces")
    @classmethod
    def _guarantees_can_be_kept(
        cls, rules: NamespaceRuleConfigs, info: ValidationInfo
    ) -> NamespaceRuleConfigs:
        tiers = info.data.get("tiers")
        if isinstance(tiers, TiersConfig):
            if isinstance(tiers.host.capacity, int):  # one that is chosen may be too small later
                check_guarantees(rules, "host", tiers.host.capacity)
            if tiers.disk.paths:
                check_guarantees(rules, "disk", tiers.disk.capacity)
        return rules

    @field_validator("socket_group", mode="before")
    @classmethod
    def _group_has_name_or_gid(cls, group: object) -> object:
        named = isinstance(group, str) and group
        numbered = isinstance(group, int) and not isinstance(group, bool) and group >= 0
        if group is None or named or numbered:
            return group
        raise ValueError("write a group's name, its gid, or null")

    @field_validator("socket_dir", mode="before")
    @classmethod
    def _socket_dir_is_text(cls, socket_dir: object) -> object:
        if not isinstance(socket_dir, str | Path):
            raise ValueError("write an absolute path")
        return socket_dir

    @field_validator("socket_dir")
    @classmethod
    def _sockets_have_room(cls, socket_dir: Path) -> Path:
        if not socket_dir.is_absolute():
            raise ValueError("write an absolute path")
        longest = max((WORKER_SOCKET, ATTACH_SOCKET, ADMIN_SOCKET), key=len)
        excess = len(os.fsencode(socket_dir / longest)) - MAX_SOCKET_PATH_BYTES
        if excess > 0:
            raise ValueError(
                f"a Unix socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes; "
                f"this directory is {excess} too long for {longest}"
            )
        return socket_dir

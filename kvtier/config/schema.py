"""Every key of the agent's configuration, with its default and its bounds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kvtier.config.cluster_url import ClusterUrl, has_password, has_tls
from kvtier.config.directories import Directories, parse_directory
from kvtier.config.namespaces import NamespaceRuleConfigs, check_guarantees
from kvtier.config.size import Size, at_least, format_size
from kvtier.core.capacity import LEAST_DISK_PATH_BYTES, LEAST_HOST_BYTES
from kvtier.core.policies.named import find_policy
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
WritePolicy = Literal["through", "on_evict", "after_hits"]
Admission = Literal["always", "second_hit", "cold_first_turn"]
Codec = Literal["none", "planes_lz4"]

Count = Annotated[int, Strict(), Field(ge=1)]
PosixId = Annotated[int, Strict(), Field(ge=0, lt=2**32 - 1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Seconds = Positive
SecondsOrNone = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Positive, Field(le=1)]
Text = Annotated[str, Strict()]
File = Annotated[Path, BeforeValidator(parse_directory)]

_LEAST_PER_PATH: Final = LEAST_DISK_PATH_BYTES
_LONGEST_PIN_SECONDS: Final = 10 * 365.0 * 24 * 3600
_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_TENANT: Final = re.compile(rf"\*|{_NAME}")
_NAMESPACE: Final = re.compile(rf"{_NAME}/{_NAME}")
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Section(BaseModel):
    """Immutable, and strict about what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class WorkerRule(Section):
    """Which tenants' namespaces the workers of one uid, or of one gid, may open."""

    uid: PosixId | None = None
    gid: PosixId | None = None
    tenants: tuple[str, ...] = ("*",)

    @field_validator("tenants")
    @classmethod
    def _tenants_have_names(cls, tenants: tuple[str, ...]) -> tuple[str, ...]:
        if not tenants or not all(map(_TENANT.fullmatch, tenants)):
            raise ValueError(
                'write a list of "*" or names: lower-case letters, digits, . _ -, at most 63, '
                "a letter or a digit first"
            )
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
    """Calls in flight, of all workers together."""


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


def _can_be_found(policy: str) -> str:
    find_policy(policy)
    return policy


PolicyName = Annotated[Text, AfterValidator(_can_be_found)]


class CachingConfig(Section):
    """What a tier keeps."""

    policy: PolicyName = "lru"
    admission: Admission = "always"

    @field_validator("admission")
    @classmethod
    def _admission_suits_policy(cls, admission: Admission, info: ValidationInfo) -> Admission:
        if "policy" in info.data:
            find_policy(info.data["policy"], admission)
        return admission


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
        if not all(map(_TENANT.fullmatch, tenants or ())):
            raise ValueError(
                'write null, or a list of "*" or names: lower-case letters, digits, . _ -, at '
                "most 63, a letter or a digit first"
            )
        return tenants


class HostConfig(CachingConfig):
    """The arena in host memory."""

    policy: PolicyName = "hd"

    capacity: Annotated[Size, at_least(LEAST_HOST_BYTES)] = 2**30
    memory_reserve: Annotated[Size, at_least(0)] = 512 * 2**20
    """Populating stops while available memory, or the cgroup's headroom, is below this."""


class DiskConfig(CachingConfig):
    """Files on local devices."""

    paths: Directories = ()
    """Empty: there is no DISK tier."""
    capacity: Annotated[Size, at_least(_LEAST_PER_PATH)] = 10 * 2**30
    """Over all paths together."""
    write_policy: WritePolicy = "through"
    write_after_hits: Count = 2
    """Of `after_hits`: the loads from HOST after which a block is written."""
    min_free: Annotated[Size, at_least(0)] = 2**30
    """Nothing is written while the device has less free space than this."""
    io_depth: Annotated[Count, Field(le=64)] = 2
    """Threads, and so requests in flight, for each path."""
    io_timeout: Seconds = 10.0
    max_in_flight: Annotated[Size, at_least(2**20)] = 256 * 2**20
    """Being written at one time, over all paths together."""
    scrub_rate: Annotated[Size, at_least(2**20)] = 100 * 2**20
    """Bytes a second that a scrub reads unless it is told otherwise."""

    @model_validator(mode="after")
    def _every_path_has_room(self) -> DiskConfig:
        least = _LEAST_PER_PATH * len(self.paths)
        if self.capacity < least:
            raise ValueError(
                f"capacity ({format_size(self.capacity)}) must be at least "
                f"{format_size(_LEAST_PER_PATH)} for each of {len(self.paths)} paths, "
                f"together {format_size(least)}"
            )
        return self


class ClusterConfig(Section):
    """Redis or Valkey, shared with other nodes. Secrets are read by `secret_files`."""

    url: Annotated[ClusterUrl | None, Field(repr=False)] = None
    """None: there is no CLUSTER tier."""
    username: Text | None = None
    password_file: File | None = None
    password_env: Text | None = None
    """The name of the variable that has the password."""
    tls_ca: File | None = None
    tls_cert: File | None = None
    tls_key: File | None = None
    key_prefix: Text = "kvtier"
    ttl: Annotated[Count, Field(le=2**31 - 1)] = 24 * 60 * 60
    """Seconds; whole ones, as Redis wants them."""
    write_policy: WritePolicy = "through"
    write_after_hits: Count = 2
    """Of `after_hits`: the loads from HOST after which a block is written."""
    connections: Annotated[Count, Field(le=64)] = 2
    """Threads, and so large replies on their way at one time."""
    timeout: Seconds = 1.0
    """For one exchange."""
    lookup_timeout: Seconds = 0.1
    """A lookup waits so long for what the cluster has."""
    max_in_flight: Annotated[Size, at_least(2**20)] = 64 * 2**20
    """Being written at one time."""
    hit_seconds: SecondsOrNone = 30.0
    """It is believed for so long that a block is there."""
    miss_seconds: SecondsOrNone = 1.0
    """It is believed for so long that a block is not there."""
    codec: Codec = "none"
    codecs: dict[str, Codec] = Field(default_factory=dict)
    """By `tenant/name`, instead of `codec`."""
    keys_file: File | None = None
    embedded_capacity: Annotated[Size, at_least(16 * 2**20)] = 2**30
    """Of the server that `url: embedded` starts."""
    heartbeat: Annotated[Seconds, Field(le=3600)] = 2.0
    node_name: Text | None = None
    """None: the name of the host."""

    @field_validator("key_prefix")
    @classmethod
    def _prefix_is_plain(cls, prefix: str) -> str:
        if not _KEY_PREFIX.fullmatch(prefix):
            raise ValueError("write letters, digits, . _ : and -, at most 64")
        return prefix

    @field_validator("node_name")
    @classmethod
    def _node_name_is_plain(cls, name: str | None) -> str | None:
        if name is not None and not _NODE_NAME.fullmatch(name):
            raise ValueError("write letters, digits, . _ and -, at most 64, or null")
        return name

    @field_validator("password_env")
    @classmethod
    def _variable_has_a_name(cls, variable: str | None) -> str | None:
        if variable is not None and not _VARIABLE.fullmatch(variable):
            raise ValueError("write the name of a variable: letters, digits and _")
        return variable

    @field_validator("codecs")
    @classmethod
    def _codecs_are_of_namespaces(cls, codecs: dict[str, Codec]) -> dict[str, Codec]:
        if wrong := next((each for each in codecs if not _NAMESPACE.fullmatch(each)), None):
            raise ValueError(f"{wrong!r} is no namespace; write tenant/name: codec")
        return codecs

    @model_validator(mode="after")
    def _password_has_one_place(self) -> ClusterConfig:
        places = {
            "url": self.url is not None and has_password(self.url),
            "password_file": self.password_file is not None,
            "password_env": self.password_env is not None,
        }
        if len(given := [name for name, is_given in places.items() if is_given]) > 1:
            raise ValueError(f"the password is in {' and in '.join(given)}; leave it in one")
        return self

    @model_validator(mode="after")
    def _tls_files_have_their_use(self) -> ClusterConfig:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs tls_cert")
        is_given = self.tls_ca is not None or self.tls_cert is not None
        if is_given and self.url is not None and not has_tls(self.url):
            raise ValueError("tls_ca, tls_cert and tls_key need a url that begins with rediss")
        return self


class TiersConfig(Section):
    """One section for each tier."""

    host: HostConfig = HostConfig()
    disk: DiskConfig = DiskConfig()
    cluster: ClusterConfig = ClusterConfig()


class HistoryConfig(Section):
    """What is remembered of blocks that are not here any more."""

    blocks: Annotated[int, Strict(), Field(ge=0, le=2**28)] = 2**20
    """0: nothing is."""


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
    layout_conflict: LayoutConflict = "warn"
    limits: LimitsConfig = LimitsConfig()
    leases: LeaseConfig = LeaseConfig()
    pins: PinConfig = PinConfig()
    streams: StreamsConfig = StreamsConfig()
    movers: Annotated[Count, Field(le=64)] = 2
    tiers: TiersConfig = TiersConfig()
    history: HistoryConfig = HistoryConfig()
    namespaces: NamespaceRuleConfigs = Field(default_factory=dict)
    """By pattern; the first that matches counts."""
    prefetch: PrefetchConfig = PrefetchConfig()
    log: LogConfig = LogConfig()

    @field_validator("namespaces")
    @classmethod
    def _guarantees_can_be_kept(
        cls, rules: NamespaceRuleConfigs, info: ValidationInfo
    ) -> NamespaceRuleConfigs:
        tiers = info.data.get("tiers")
        if isinstance(tiers, TiersConfig):
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

"""The sections of the tiers."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from kvtier.config.caching import CachingConfig, PolicyName
from kvtier.config.cluster_url import ClusterUrl, has_password, has_tls
from kvtier.config.directories import Directories
from kvtier.config.gpu import GpuConfig
from kvtier.config.section import NAME, Count, File, Seconds, SecondsOrNone, Section, Text
from kvtier.config.size import Size, at_least, at_most, format_size
from kvtier.config.sizing import AutoSizingConfig, HostCapacity
from kvtier.core.capacity import LEAST_DISK_PATH_BYTES, MOST_DISK_BYTES

WritePolicy = Literal["through", "on_evict", "after_hits"]
Codec = Literal["none", "planes_lz4"]

_LEAST_PER_PATH: Final = LEAST_DISK_PATH_BYTES
_NAMESPACE: Final = re.compile(rf"{NAME}/{NAME}")
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class HostConfig(CachingConfig):
    """The arena in host memory."""

    policy: PolicyName = "hd"

    capacity: HostCapacity = 2**30
    auto: AutoSizingConfig = AutoSizingConfig()
    memory_reserve: Annotated[Size, at_least(0)] = 512 * 2**20
    """Populating stops while available memory, or the cgroup's headroom, is below this."""


class DiskConfig(CachingConfig):
    """Files on local devices."""

    paths: Directories = ()
    """Empty: there is no DISK tier."""
    capacity: Annotated[Size, at_least(_LEAST_PER_PATH), at_most(MOST_DISK_BYTES)] = 10 * 2**30
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

    gpu: GpuConfig = GpuConfig()
    host: HostConfig = HostConfig()
    disk: DiskConfig = DiskConfig()
    cluster: ClusterConfig = ClusterConfig()

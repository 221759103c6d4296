"""The agent's configuration: what can be set, and where each value came from."""

from __future__ import annotations

from kvtier.config.load import SYSTEM_FILE, LoadedConfig, load_config
from kvtier.config.schema import (
    AgentConfig,
    LayoutConflict,
    LeaseConfig,
    LimitsConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    WorkerRule,
)
from kvtier.config.secret_files import SealingKeys, load_password, load_sealing_keys
from kvtier.config.size import Size, format_size, parse_size
from kvtier.config.tiers import (
    ClusterConfig,
    Codec,
    DiskConfig,
    HostConfig,
    TiersConfig,
    WritePolicy,
)

__all__ = [
    "SYSTEM_FILE",
    "AgentConfig",
    "ClusterConfig",
    "Codec",
    "DiskConfig",
    "HostConfig",
    "LayoutConflict",
    "LeaseConfig",
    "LimitsConfig",
    "LoadedConfig",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "SealingKeys",
    "Size",
    "TiersConfig",
    "WorkerRule",
    "WritePolicy",
    "format_size",
    "load_config",
    "load_password",
    "load_sealing_keys",
    "parse_size",
]

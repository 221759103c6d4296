"""The agent's configuration: what can be set, and where each value came from."""

from __future__ import annotations

from kvtier.config.load import SYSTEM_FILE, LoadedConfig, load_config
from kvtier.config.schema import (
    AgentConfig,
    DiskConfig,
    HostConfig,
    LayoutConflict,
    LeaseConfig,
    LimitsConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    TiersConfig,
    WorkerRule,
    WritePolicy,
)
from kvtier.config.size import Size, format_size, parse_size

__all__ = [
    "SYSTEM_FILE",
    "AgentConfig",
    "DiskConfig",
    "HostConfig",
    "LayoutConflict",
    "LeaseConfig",
    "LimitsConfig",
    "LoadedConfig",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "Size",
    "TiersConfig",
    "WorkerRule",
    "WritePolicy",
    "format_size",
    "load_config",
    "parse_size",
]

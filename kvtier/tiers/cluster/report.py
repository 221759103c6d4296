"""What kind of deployment this is, and what about it will hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Concern(Enum):
    """What an operator should know; the values are for people."""

    NO_EVICTION = "maxmemory-policy is noeviction: a full server refuses blocks; use allkeys-lru"
    VOLATILE_ONLY = (
        "maxmemory-policy evicts only keys with a TTL: kvtier's all have one, others not"
    )
    NOT_LRU = "maxmemory-policy is not by use: blocks that are needed may be evicted first"
    NO_LIMIT = "maxmemory is 0: the server grows until the machine has no memory"
    IS_REPLICA = "the server is a replica: nothing can be stored"
    PERSISTENT = "the server writes its data to disk: blocks are not worth it"


@dataclass(frozen=True)
class ClusterReport:
    """`maxmemory_bytes` is that of all masters; 0 if one of them has no limit."""

    kind: str  #: "redis" or "valkey"
    version: str
    mode: str  #: "standalone", "sentinel" or "cluster", as the server says
    servers: int
    maxmemory_bytes: int
    used_bytes: int
    policies: tuple[str, ...]
    concerns: tuple[Concern, ...]


def report_of(infos: Sequence[bytes]) -> ClusterReport:
    """From the answers of all masters to INFO. What a server does not tell is empty or 0."""
    fields = [_fields(info) for info in infos]
    first = fields[0] if fields else {}
    limits = [_int(each, "maxmemory") for each in fields]
    policies = tuple(sorted({each.get("maxmemory_policy", "") for each in fields}))
    return ClusterReport(
        kind="valkey" if "valkey_version" in first else "redis",
        version=first.get("valkey_version") or first.get("redis_version", ""),
        mode=first.get("server_mode") or first.get("redis_mode", ""),
        servers=len(fields),
        maxmemory_bytes=sum(limits) if all(limits) else 0,
        used_bytes=sum(_int(each, "used_memory") for each in fields),
        policies=policies,
        concerns=tuple(each for each in Concern if any(_has(each, one) for one in fields)),
    )


def _has(concern: Concern, fields: Mapping[str, str]) -> bool:
    policy = fields.get("maxmemory_policy", "")
    has_limit = _int(fields, "maxmemory") > 0
    match concern:
        case Concern.NO_EVICTION:
            return policy == "noeviction"
        case Concern.VOLATILE_ONLY:
            return policy.startswith("volatile")
        case Concern.NOT_LRU:
            return policy.endswith(("-random", "-ttl"))
        case Concern.NO_LIMIT:
            return not has_limit
        case Concern.IS_REPLICA:
            return fields.get("role", "master") != "master"
        case Concern.PERSISTENT:
            return fields.get("aof_enabled") == "1"


def _fields(info: bytes) -> dict[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _int(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name, "")
    return int(value) if value.isdigit() else 0

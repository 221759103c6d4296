"""What the scheduler's side tells the workers' side, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
)


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of one request in one KV group, and where the paged cache has them.

    `ids` has one block id per hash. `parent` and `position` are those of a `Place`; `hold_id` is
    that of the lookup that found the blocks.
    """

    group: int
    hashes: list[bytes]
    ids: list[int]
    parent: bytes = b""
    position: int = 0
    hold_id: int = 0


@dataclass(frozen=True)
class Load:
    """Blocks to be copied into the paged cache before the request goes on.

    `budget_seconds` is what computing them would take. `is_slower` if some are in a tier below
    HOST.
    """

    request_id: str
    blocks: list[Blocks]
    budget_seconds: float
    is_slower: bool = False


@dataclass(frozen=True)
class Store:
    """Blocks that are full after this step. `restarts` if they begin the request's chain anew."""

    request_id: str
    blocks: list[Blocks]
    restarts: bool = False


@dataclass
class Plan(KVConnectorMetadata):
    """One step. `namespace` holds the fields of a NamespaceSpec; None: nothing is to be done yet.

    `overwritten` are ids of paged blocks that this step gives to somebody else: stores that read
    them end before it begins. `finished` are requests whose blocks wait for their stores. `idle`
    says that nothing is computed in this step.
    """

    namespace: dict[str, Any] | None = None
    loads: list[Load] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    overwritten: set[int] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    idle: bool = False


@dataclass(frozen=True)
class WorkerLayout(KVConnectorHandshakeMetadata):
    """How one worker keeps its blocks: bytes of a block per group, and what they depend on."""

    block_bytes: tuple[int, ...]
    layout: str
    extra: dict[str, str]

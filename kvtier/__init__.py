"""KV-cache blocks for LLM inference workers: kept in tiers, shared by prefix.

The names below are the public API of a worker; they are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.client.async_client import AsyncClient
    from kvtier.client.async_namespace import AsyncNamespace
    from kvtier.client.client import Client
    from kvtier.client.endpoint import Tls
    from kvtier.client.namespace import Namespace
    from kvtier.client.requests import Lookup
    from kvtier.client.slots import Loaded, Reservation
    from kvtier.core.block import BlockStatus, Match, Tier, Wait
    from kvtier.core.namespace import NamespaceSpec

_HOMES = {
    "AsyncClient": "kvtier.client.async_client",
    "AsyncNamespace": "kvtier.client.async_namespace",
    "BlockStatus": "kvtier.core.block",
    "Client": "kvtier.client.client",
    "Loaded": "kvtier.client.slots",
    "Lookup": "kvtier.client.requests",
    "Match": "kvtier.core.block",
    "Namespace": "kvtier.client.namespace",
    "NamespaceSpec": "kvtier.core.namespace",
    "Reservation": "kvtier.client.slots",
    "Tier": "kvtier.core.block",
    "Tls": "kvtier.client.endpoint",
    "Wait": "kvtier.core.block",
}

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "BlockStatus",
    "Client",
    "Loaded",
    "Lookup",
    "Match",
    "Namespace",
    "NamespaceSpec",
    "Reservation",
    "Tier",
    "Tls",
    "Wait",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kvtier' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""What each method needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from kvtier.access.credential import Credential
from kvtier.access.role import Role
from kvtier.errors import AccessDeniedError, InvalidRequestError

#: Of a registration that names no tenant.
_DEFAULT_TENANT: Final = "default"


class Reach(Enum):
    """What a method shows or changes, and so which namespaces its caller must have a right to."""

    NOTHING = "nothing of any namespace"
    SPEC = "the namespace that the field `namespace` describes"
    SESSION = "the namespace of its session"
    NAMED = "the namespaces that the field `namespace` names; it must name one"
    VISIBLE = "what the caller has a right to, of that what the field `namespace` names"
    AGENT = "all namespaces together, or the agent itself"


@dataclass(frozen=True)
class Need:
    """Which roles may call a method, and what it reaches."""

    roles: frozenset[Role]
    reach: Reach


_WORKER: Final = frozenset({Role.WORKER})
_READING: Final = frozenset({Role.READER, Role.OPERATOR})
_STEERING: Final = frozenset({Role.OPERATOR})

#: By full name. What is not in here is refused.
METHODS: Final[Mapping[str, Need]] = {
    f"kvtier.v1.{method}": Need(roles, reach)
    for method, roles, reach in (
        ("BlockCache.GetCapabilities", _WORKER, Reach.NOTHING),
        ("BlockCache.OpenSession", _WORKER, Reach.SPEC),
        ("BlockCache.LookupPrefix", _WORKER, Reach.SESSION),
        ("BlockCache.LoadBlocks", _WORKER, Reach.SESSION),
        ("BlockCache.ReserveBlocks", _WORKER, Reach.SESSION),
        ("BlockCache.CommitBlocks", _WORKER, Reach.SESSION),
        ("BlockCache.RenewLeases", _WORKER, Reach.SESSION),
        ("BlockCache.ReleaseLeases", _WORKER, Reach.SESSION),
        ("BlockCache.ReadBlocks", _WORKER, Reach.SESSION),
        ("BlockCache.WriteBlocks", _WORKER, Reach.SESSION),
        ("BlockCache.PrefetchPrefix", _WORKER, Reach.SESSION),
        ("BlockCache.TouchBlocks", _WORKER, Reach.SESSION),
        ("CacheEvents.WatchEvents", _READING, Reach.NAMED),
        ("CacheAdmin.GetStats", _READING, Reach.VISIBLE),
        ("CacheAdmin.WatchStats", _READING, Reach.VISIBLE),
        ("CacheAdmin.ListPins", _READING, Reach.VISIBLE),
        ("CacheAdmin.ListSessions", _READING, Reach.VISIBLE),
        ("CacheAdmin.ListNamespaces", _READING, Reach.VISIBLE),
        ("CacheAdmin.ListNodes", _READING, Reach.AGENT),
        ("CacheAdmin.ExplainBlocks", _READING, Reach.NAMED),
        ("CacheAdmin.ListBlocks", _READING, Reach.NAMED),
        ("CacheAdmin.ListRequests", _READING, Reach.VISIBLE),
        ("CacheAdmin.GetRequest", _READING, Reach.NAMED),
        ("CacheAdmin.RecordRequests", _STEERING, Reach.VISIBLE),
        ("CacheAdmin.CreatePin", _STEERING, Reach.NAMED),
        ("CacheAdmin.DeletePin", _STEERING, Reach.VISIBLE),
        ("CacheAdmin.WarmPrefix", _STEERING, Reach.NAMED),
        ("CacheAdmin.EvictBlocks", _STEERING, Reach.NAMED),
        ("CacheAdmin.InvalidateNamespace", _STEERING, Reach.NAMED),
        ("CacheAdmin.ResizeTier", _STEERING, Reach.AGENT),
        ("CacheAdmin.FlushTier", _STEERING, Reach.AGENT),
        ("CacheAdmin.ScrubTier", _STEERING, Reach.AGENT),
        ("CacheAdmin.DrainAgent", _STEERING, Reach.AGENT),
        ("CacheAdmin.ResumeAgent", _STEERING, Reach.AGENT),
    )
}


def is_steering(method: str) -> bool:
    """Whether it is for operators only."""
    return method in METHODS and METHODS[method].roles == _STEERING


def require_role(credential: Credential, method: str) -> None:
    """Raises AccessDeniedError if a method is not for the credential, whatever it is asked."""
    need = METHODS.get(method)
    if need is None or credential.role not in need.roles:
        name = method.rpartition(".")[2]
        whose = " or ".join(sorted(need.roles)) if need is not None else "nobody off this node"
        raise AccessDeniedError(
            f"{name} is for role {whose}; this credential's is {credential.role}"
        )
    if need.reach is Reach.AGENT and not credential.scope.is_all:
        name = method.rpartition(".")[2]
        raise AccessDeniedError(f"{name} concerns all namespaces; this credential is for some")


def require_reach(credential: Credential, method: str, request: Any) -> None:
    """Raises AccessDeniedError if a request names a namespace that the credential is not for."""
    scope = credential.scope
    if scope.is_all:
        return
    match METHODS[method].reach:
        case Reach.SPEC:
            spec = request.namespace
            scope.require(spec.tenant or _DEFAULT_TENANT, spec.name)
        case Reach.NAMED if not request.namespace:
            raise InvalidRequestError("namespace is empty; name one as tenant/name")
        case Reach.NAMED:
            scope.require_selected(request.namespace)
        case Reach.VISIBLE if namespace := getattr(request, "namespace", ""):
            scope.require_selected(namespace)
        case _:
            pass

"""The namespaces that workers have registered."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from kvtier.core.namespace import Identity, NamespaceSpec
from kvtier.errors import LayoutConflictError, NotFoundError, OverloadedError
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)


class LayoutConflict(Enum):
    """What to do when another layout is registered under a name."""

    WARN = "warn"
    REJECT = "reject"


@dataclass(eq=False)
class Namespace:
    """One registered layout: its size class per KV group, and who uses it."""

    namespace_id: int
    spec: NamespaceSpec
    groups: tuple[SizeClass, ...]
    generation_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    session_count: int = 0

    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def classes(self) -> list[SizeClass]:
        """Its size classes; groups of one size share one."""
        return list(dict.fromkeys(self.groups))


class Namespaces:
    """Namespaces by layout. One without sessions and memory makes way when there are too many."""

    def __init__(
        self,
        host: HostTier,
        *,
        limit: int,
        layout_conflict: LayoutConflict = LayoutConflict.WARN,
    ) -> None:
        self._host = host
        self._limit = limit
        self._layout_conflict = layout_conflict
        self._ids = itertools.count(1)
        self._by_identity: dict[Identity, Namespace] = {}

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._by_identity.values())

    def __len__(self) -> int:
        return len(self._by_identity)

    def register(self, spec: NamespaceSpec) -> tuple[Namespace, list[str]]:
        """The namespace of a spec, and the fields in which its siblings differ from it."""
        differences = self.sibling_differences(spec)
        if differences and self._layout_conflict is LayoutConflict.REJECT:
            raise LayoutConflictError(
                f"namespace {spec.tenant}/{spec.name} is registered with another layout; "
                f"it differs in {', '.join(differences)}. Use the same settings or another name"
            )
        namespace = self._by_identity.get(spec.identity)
        if namespace is None:
            self._make_way()
            namespace_id = next(self._ids)
            groups = tuple(self._host.size_class(namespace_id, size) for size in spec.block_bytes)
            namespace = Namespace(namespace_id, spec, groups)
            self._by_identity[spec.identity] = namespace
            if differences:
                log.warning(
                    "%s: another layout has the same name; they share no blocks, and differ in %s",
                    spec.label,
                    ", ".join(differences),
                )
        return namespace, differences

    def sibling_differences(self, spec: NamespaceSpec) -> list[str]:
        """Layout fields in which namespaces of the same tenant and name differ from `spec`."""
        names: dict[str, None] = {}
        for each in self._by_identity.values():
            if (each.spec.tenant, each.spec.name) == (spec.tenant, spec.name):
                names.update(dict.fromkeys(spec.differences(each.spec)))
        return list(names)

    def select(self, selector: str) -> list[Namespace]:
        """Those that `tenant/name` or `tenant/name@digest` names; all for an empty selector.

        Raises NotFoundError when there is none.
        """
        if not selector:
            return list(self)
        chosen = [each for each in self if each.spec.matches(selector)]
        if not chosen:
            raise NotFoundError(
                f"no namespace {selector!r}; namespaces are named tenant/name or "
                "tenant/name@digest, and exist from a worker's first registration on"
            )
        return chosen

    def _make_way(self) -> None:
        if len(self) < self._limit:
            return
        for identity, each in self._by_identity.items():
            if each.session_count == 0 and not any(c.extents for c in each.classes):
                del self._by_identity[identity]
                self._host.drop_namespace(each.namespace_id)
                return
        raise OverloadedError(
            f"{len(self)} namespaces are in use, as many as limits.max_namespaces allows"
        )

"""How namespaces stand in the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.namespace import identity_digest


@dataclass(eq=False)
class Tenure:
    """One generation of a namespace, until something of it is evicted: work under way that belongs
    to an earlier tenure is not wanted any more.

    Nothing is read or written before the nodes agree on the generation.
    """

    namespace_id: int
    label: str
    block_bytes: tuple[int, ...]
    generation_id: bytes
    identity: bytes = field(repr=False)
    is_agreed: bool = False
    is_current: bool = True


class Tenures:
    """The current ones, by namespace."""

    def __init__(self) -> None:
        self._current: dict[int, Tenure] = {}

    def of(self, namespace: Namespace) -> Tenure:
        """One that has ended if the namespace has made way for another."""
        return self._current.get(namespace.namespace_id) or _tenure(namespace, is_current=False)

    def of_id(self, namespace_id: int) -> Tenure | None:
        return self._current.get(namespace_id)

    def begin(self, namespace: Namespace) -> Tenure:
        """Ends the one before. The nodes still agree if it is the same generation."""
        before = self._current.get(namespace.namespace_id)
        tenure = _tenure(namespace)
        if before is not None:
            before.is_current = False
            tenure.is_agreed = before.is_agreed and before.generation_id == tenure.generation_id
        self._current[namespace.namespace_id] = tenure
        return tenure

    def suspend(self, namespace: Namespace) -> None:
        """Ends the present one; what would wait for the nodes to agree fails."""
        self.of(namespace).is_current = self.of(namespace).is_agreed = False

    def end(self, namespace: Namespace) -> None:
        """It made way for another."""
        self._current.pop(namespace.namespace_id).is_current = False


def _tenure(namespace: Namespace, *, is_current: bool = True) -> Tenure:
    return Tenure(
        namespace.namespace_id,
        namespace.label,
        namespace.spec.block_bytes,
        namespace.generation_id,
        identity_digest(namespace.spec, namespace.generation_id),
        is_current=is_current,
    )

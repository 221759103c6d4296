"""How namespaces stand in the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtier.agent.namespaces import Namespace
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
        return self._current[namespace.namespace_id]

    def of_id(self, namespace_id: int) -> Tenure | None:
        return self._current.get(namespace_id)

    def begin(self, namespace: Namespace) -> Tenure:
        """Ends the one before."""
        before = self._current.get(namespace.namespace_id)
        tenure = Tenure(
            namespace.namespace_id,
            namespace.label,
            namespace.spec.block_bytes,
            namespace.generation_id,
            identity_digest(namespace.spec, namespace.generation_id),
        )
        if before is not None:
            before.is_current = False
            tenure.is_agreed = before.is_agreed and before.generation_id == tenure.generation_id
        self._current[namespace.namespace_id] = tenure
        return tenure

    def end(self, namespace: Namespace) -> None:
        self._current.pop(namespace.namespace_id).is_current = False

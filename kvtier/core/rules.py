"""What holds for namespaces by their names: time to live, and quotas in tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvtier.core.block import Tier


@dataclass(frozen=True, slots=True)
class Amount:
    """Of a tier's space: bytes, or a share of its capacity from 0 to 1."""

    size_bytes: int = 0
    share: float | None = None

    def of(self, capacity_bytes: int) -> int:
        """In bytes."""
        return self.size_bytes if self.share is None else int(self.share * capacity_bytes)


NOTHING: Final = Amount()


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that may be occupied of a tier (None: all), and what others may not take away."""

    limit: Amount | None = None
    guaranteed: Amount = NOTHING


NO_QUOTA: Final = Quota()


@dataclass(frozen=True, eq=False)
class NamespaceRule:
    """For the namespaces of a pattern: `tenant/name`, `tenant/*` or `*`.

    All namespaces of the pattern have each quota together. `ttl_seconds` counts from the store of a
    block; None: for ever.
    """

    pattern: str = "*"
    ttl_seconds: float | None = None
    quotas: Mapping[Tier, Quota] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Empty if there is no rule."""
        return "" if self is NO_RULE else self.pattern

    def matches(self, tenant: str, name: str) -> bool:
        return self.pattern in ("*", f"{tenant}/*", f"{tenant}/{name}")

    def quota(self, tier: Tier) -> Quota:
        return self.quotas.get(tier, NO_QUOTA)


NO_RULE: Final = NamespaceRule()


def rule_for(rules: Sequence[NamespaceRule], tenant: str, name: str) -> NamespaceRule:
    """The first that matches."""
    return next((rule for rule in rules if rule.matches(tenant, name)), NO_RULE)

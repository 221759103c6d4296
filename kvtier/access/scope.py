"""Which namespaces a credential may use, see or change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from kvtier.errors import AccessDeniedError, InvalidRequestError

EVERYTHING: Final = "*"

_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_PATTERN: Final = re.compile(rf"\*|{_NAME}/(\*|{_NAME})")


@dataclass(frozen=True)
class Scope:
    """Namespaces by pattern: `tenant/name`, `tenant/*` or `*`. Layouts play no part.

    Raises InvalidRequestError for what is no pattern.
    """

    patterns: frozenset[str]

    def __post_init__(self) -> None:
        for each in sorted(self.patterns):
            if not _PATTERN.fullmatch(each):
                raise InvalidRequestError(
                    f"{each!r} names no namespaces; write tenant/name, tenant/* or *"
                )

    @cached_property
    def is_all(self) -> bool:
        return EVERYTHING in self.patterns

    @property
    def tenants(self) -> frozenset[str]:
        """Those of which anything is covered; `*` stands for all."""
        return frozenset(each.partition("/")[0] for each in self.patterns)

    def covers(self, tenant: str, name: str) -> bool:
        return self.is_all or f"{tenant}/*" in self.patterns or f"{tenant}/{name}" in self.patterns

    def covers_all_of(self, pattern: str) -> bool:
        """Whether it covers every namespace of a pattern."""
        tenant, _, name = pattern.partition("/")
        return self.is_all or (bool(name) and self.covers(tenant, name))

    def require(self, tenant: str, name: str) -> None:
        """Raises AccessDeniedError, whether there is such a namespace or not."""
        if not self.covers(tenant, name):
            raise AccessDeniedError(f"this credential is not for namespace {tenant}/{name}")

    def require_selected(self, selector: str) -> None:
        """As `require`, of `tenant/name` or `tenant/name@digest`."""
        tenant, _, name = selector.partition("@")[0].partition("/")
        self.require(tenant, name)


ALL: Final = Scope(frozenset({EVERYTHING}))

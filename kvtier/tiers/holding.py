"""What the namespaces of one rule have of a tier."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtier.core.rules import Quota

if TYPE_CHECKING:
    from kvtier.tiers.size_class import SizeClass

_PLENTY_BYTES = 1 << 62


class Holding:
    """Size classes that share a quota. `capacity_bytes` is the tier's, which may change."""

    def __init__(self, quota: Quota, capacity_bytes: Callable[[], int]) -> None:
        self.classes: list[SizeClass] = []
        self._quota = quota
        self._capacity_bytes = capacity_bytes

    @property
    def limit_bytes(self) -> int | None:
        limit = self._quota.limit
        return None if limit is None else limit.of(self._capacity_bytes())

    @property
    def guaranteed_bytes(self) -> int:
        return self._quota.guaranteed.of(self._capacity_bytes())

    @property
    def occupied_bytes(self) -> int:
        """All extents, those that are being emptied too."""
        return sum(each.extent_bytes for each in self.classes)

    @property
    def kept_bytes(self) -> int:
        """Without what is being emptied."""
        return sum(
            extent.size_bytes
            for each in self.classes
            for extent in each.extents
            if not extent.retiring
        )

    @property
    def growth_bytes(self) -> int:
        """How much more it may occupy now."""
        limit = self.limit_bytes
        return _PLENTY_BYTES if limit is None else max(0, limit - self.occupied_bytes)

    @property
    def excess_bytes(self) -> int:
        """What it has beyond its limit and is not giving back yet."""
        limit = self.limit_bytes
        return 0 if limit is None else max(0, self.kept_bytes - limit)

    @property
    def spare_bytes(self) -> int:
        """What others may take from it."""
        guaranteed = self.guaranteed_bytes
        return _PLENTY_BYTES if not guaranteed else max(0, self.kept_bytes - guaranteed)

    @property
    def is_short(self) -> bool:
        """Whether it has less than it is guaranteed."""
        guaranteed = self.guaranteed_bytes
        return guaranteed > 0 and self.kept_bytes < guaranteed

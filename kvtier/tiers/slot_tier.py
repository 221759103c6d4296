"""A tier: size classes that share one space."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from kvtier.core import slots as layout
from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.core.policies.base import Context
from kvtier.core.policies.named import find_policy
from kvtier.core.rules import NO_RULE, NamespaceRule
from kvtier.tiers.holding import Holding
from kvtier.tiers.lifetimes import Lifetimes
from kvtier.tiers.size_class import OnForget, SizeClass
from kvtier.tiers.slot_table import Extent, SlotTable

#: How much older, as a share of its own age, another class's coldest block must be before a class
#: takes an extent from it: without it two busy classes would trade extents for ever.
_TRADE_MARGIN = 0.125


#: A block that is to move: its row, the slot it is in, and the slot it goes to.
Move = tuple[int, int, int]


class Space(Protocol):
    """What a tier's extents are made of, within a capacity."""

    capacity_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """What counts against the capacity now."""
        ...

    def resize(self, capacity_bytes: int) -> None:
        """Changes the capacity, to less than is allocated too."""
        ...

    @property
    def least_bytes(self) -> int:
        """No smaller capacity can be reached now."""
        ...

    def excess_bytes(self) -> dict[int, int]:
        """By stripe, what is allocated beyond the capacity, where anything is."""
        ...

    def counted_bytes(self, extent: Extent) -> int:
        """What is allocated less when the extent is retired."""
        ...

    def next_extent_slots(self, slot_bytes: int, class_bytes: int) -> int:
        """How large the next extent of a size class of so many bytes would be; 0 if none fits."""
        ...

    def create_table(self, namespace_id: int) -> SlotTable: ...

    def drop_table(self, table: SlotTable) -> None:
        """The namespace is forgotten."""
        ...

    def create_extent(self, table: SlotTable, slots: int, slot_bytes: int) -> Extent:
        """Counts from now on; to be populated."""
        ...

    def retire(self, extent: Extent) -> None:
        """After its `discard`."""
        ...

    def copying(self, size_class: SizeClass, moves: Sequence[Move]) -> Callable[[], list[bool]]:
        """A call for a mover that copies blocks to other slots; which of them are whole there."""
        ...

    def close(self) -> None: ...


class SlotTier:
    """Blocks in slots, never more than its space allows.

    It decides and keeps the books, at once and without waiting; populating, moving and discarding,
    which take time, are left to its caller (`agent.placing.placement`) between two calls. The event
    loop owns it. `ages` counts the lives of blocks, the same in all tiers. `on_idle` is told of an
    extent that is being retired and is empty now.
    """

    def __init__(
        self,
        tier: Tier,
        space: Space,
        *,
        policy: str = "lru",
        admission: str = "always",
        ages: Ages | None = None,
    ) -> None:
        self.tier = tier
        self.space = space
        self.ages = ages or Ages()
        self.on_idle: Callable[[SizeClass, Extent], None] = lambda size_class, extent: None
        #: Of size classes made from now on.
        self.on_forget: OnForget | None = None
        #: Nothing grows while more than the capacity is allocated.
        self.is_shrinking = False
        self._ceiling_bytes = space.capacity_bytes
        self._tables: dict[int, SlotTable] = {}
        self._classes: dict[tuple[int, int], SizeClass] = {}
        self._rules: dict[int, NamespaceRule] = {}
        self._holdings: dict[NamespaceRule, Holding] = {}
        self._ticks = itertools.count(1)
        self._generations = itertools.count(1)
        self.policy_name, self.admission_name = policy, admission
        self._new_policy = find_policy(policy, admission)
        self._context = Context(self._ticks, time.monotonic, random.Random())

    def assign(self, namespace_id: int, rule: NamespaceRule) -> None:
        """Puts a namespace under a rule, before it has a size class here."""
        self._rules[namespace_id] = rule

    def holding(self, namespace_id: int) -> Holding:
        """What a namespace has here, with all others under the same rule."""
        rule = self._rules.get(namespace_id, NO_RULE)
        if rule not in self._holdings:
            quota = rule.quota(self.tier)
            self._holdings[rule] = Holding(quota, lambda: self.space.capacity_bytes)
        return self._holdings[rule]

    def _holding_of(self, size_class: SizeClass) -> Holding:
        return self.holding(size_class.table.namespace_id)

    def size_class(self, namespace_id: int, block_bytes: int) -> SizeClass:
        """The class for a namespace's blocks of this size; made at the first call."""
        key = (namespace_id, layout.slot_bytes(block_bytes))
        if key not in self._classes:
            table = self._tables.get(namespace_id)
            if table is None:
                table = self.space.create_table(namespace_id)
                self._tables[namespace_id] = table
            self._classes[key] = SizeClass(
                table,
                key[1],
                lambda blocks: self._new_policy(blocks, self._context),
                self.next_generation,
                lambda size_class, extent: self.on_idle(size_class, extent),
                Lifetimes(self.ages, self._rules.get(namespace_id, NO_RULE).ttl_seconds),
            )
            self._classes[key].on_forget = self.on_forget
            self.holding(namespace_id).classes.append(self._classes[key])
        return self._classes[key]

    def next_generation(self) -> int:
        """Never given before; greater than all before it."""
        return next(self._generations)

    def continue_after(self, generation: int) -> None:
        """Generations up to this one were given by an earlier run of the agent."""
        self._generations = itertools.count(generation + 1)

    @property
    def classes(self) -> list[SizeClass]:
        return list(self._classes.values())

    def resize(self, capacity_bytes: int) -> bool:
        """Changes the capacity; whether extents must go (see `agent.placing.shrinking`)."""
        self._ceiling_bytes = max(self.space.allocated_bytes, capacity_bytes)
        self.space.resize(capacity_bytes)
        self.is_shrinking = bool(self.space.excess_bytes())
        return self.is_shrinking

    @property
    def free_bytes(self) -> int:
        """What no extent has."""
        return self.space.capacity_bytes - self.space.allocated_bytes

    # Growing.

    def can_grow(self, size_class: SizeClass) -> bool:
        """Whether the capacity and its quota allow `grow`."""
        if self.is_shrinking:
            return False
        return _unpopulated(size_class) is not None or self._next_extent_slots(size_class) > 0

    def grow(self, size_class: SizeClass) -> Extent:
        """An extent that is still to be populated."""
        extent = _unpopulated(size_class)
        if extent is None:
            slots = self._next_extent_slots(size_class)
            extent = self.space.create_extent(size_class.table, slots, size_class.slot_bytes)
            size_class.extents.append(extent)
        size_class.grown_at = next(self._ticks)
        return extent

    def _next_extent_slots(self, size_class: SizeClass) -> int:
        allowed = self._holding_of(size_class).growth_bytes // size_class.slot_bytes
        if not allowed:
            return 0
        slots = self.space.next_extent_slots(size_class.slot_bytes, size_class.extent_bytes)
        return min(slots, allowed)

    # Taking an extent from one class for another.

    def donors(self, taker: SizeClass) -> list[SizeClass]:
        """The classes to take from: those whose coldest block is older than the taker's own, oldest
        first. Free memory is as old as the class's last growth or store: what a class has just been
        given is not spare.

        A holding at its limit takes from itself alone, and gives to nobody in particular what it
        has beyond it. From others it is taken whatever its age for a holding that has not what it
        is guaranteed.
        """
        mine = self._holding_of(taker)
        is_over, is_short = mine.excess_bytes > 0, mine.is_short
        is_full = mine.growth_bytes < taker.slot_bytes
        own, now = taker.coldest_rank(), next(self._ticks)
        limit = now if own is None else now - (now - own) * (1 + _TRADE_MARGIN)
        found = []
        for each in self._classes.values():
            if not each.extents or any(e.retiring for e in each.extents):
                continue
            is_mine = self._holding_of(each) is mine
            if (each is taker and not is_over) or (is_full and not is_mine):
                continue
            rank = each.last_use() if self._has_spare_extent(each) else each.coldest_rank()
            is_due = is_over if is_mine else is_short
            if rank is not None and (is_due or rank < limit):
                found.append((rank, each))
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def _has_spare_extent(self, size_class: SizeClass) -> bool:
        """Whether an extent can be emptied without evicting anything."""
        return size_class.free_slots >= min(each.slots for each in size_class.extents)

    def extent_to_retire(self, donor: SizeClass, taker: SizeClass | None = None) -> Extent | None:
        """The extent that costs least to empty: nobody refers to it, fewest blocks, smallest.

        None if the donor could not find room for the blocks in it. A `taker` of another holding
        gets none that would leave the donor's with less than it is guaranteed.
        """
        holding, most_bytes = self._holding_of(donor), self.space.capacity_bytes
        if taker is not None and self._holding_of(taker) is not holding:
            most_bytes = holding.spare_bytes
        candidates = [
            extent
            for extent in donor.extents
            if not extent.populating
            and extent.size_bytes <= most_bytes
            and not donor.has_references(extent)
        ]
        extent = min(candidates, key=lambda each: (each.used_slots, each.slots), default=None)
        if extent is None or extent.used_slots == 0:
            return extent
        free_elsewhere = donor.free_slots - (extent.populated_slots - extent.used_slots)
        evictable = donor.used_slots - donor.referenced_slots
        return extent if extent.used_slots - free_elsewhere <= evictable else None

    @property
    def over_limit(self) -> list[SizeClass]:
        """A size class of each holding that has more than its limit."""
        return [
            next(each for each in holding.classes if each.extents)
            for holding in self._holdings.values()
            if holding.excess_bytes
        ]

    def discard(self, size_class: SizeClass, extent: Extent) -> None:
        """Before an idle extent gives its space back: late readers fail from now on."""
        size_class.extents.remove(extent)
        size_class.table.discard(extent)

    def drop_namespace(self, namespace_id: int) -> None:
        """Forgets a namespace that holds no extent."""
        for key in [key for key in self._classes if key[0] == namespace_id]:
            assert not self._classes[key].extents, key
            self.holding(namespace_id).classes.remove(self._classes.pop(key))
        self._rules.pop(namespace_id, None)
        table = self._tables.pop(namespace_id, None)
        if table is not None:
            self.space.drop_table(table)

    def check_integrity(self) -> None:
        """Raises AssertionError if books disagree or more than the capacity is allocated.

        While the tier shrinks, the capacity is what was allocated when this was last asked.
        """
        for each in self._classes.values():
            each.check_integrity()
        allocated = self.space.allocated_bytes
        assert allocated <= max(self.space.capacity_bytes, self._ceiling_bytes)
        self._ceiling_bytes = max(allocated, self.space.capacity_bytes)
        holdings = list(self._holdings.values())
        assert sum(len(each.classes) for each in holdings) == len(self._classes)

    def close(self) -> None:
        """Closes every descriptor."""
        self.space.close()
        self._classes.clear()
        self._tables.clear()
        self._holdings.clear()


def _unpopulated(size_class: SizeClass) -> Extent | None:
    """An extent that is not all populated yet."""
    for extent in size_class.extents:
        if extent.populated_slots < extent.slots and not extent.retiring:
            return extent
    return None

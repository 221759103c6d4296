"""The blocks of one namespace and slot size in one tier."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kvtier.core.block import BlockKey, BlockKeys, BlockStatus, Lane
from kvtier.core.cause import Cause
from kvtier.core.policies.base import ALWAYS, NEVER, Blocks, Marking, Policy, Refusing
from kvtier.core.residency import NONE, Residency
from kvtier.tiers.lifetimes import Lifetimes
from kvtier.tiers.pinned import PinnedRows
from kvtier.tiers.slot_table import NO_OWNER, Extent, FreeSlots, SlotTable
from kvtier.tiers.unused import Unused
from kvtier.tiers.uses import Uses

if TYPE_CHECKING:
    from kvtier.tiers.companions import Companions

PolicyFactory = Callable[[Blocks], Policy]
OnForget = Callable[["SizeClass", int, Cause, int], None]


class Witness(Protocol):
    """Is told of each change of what a size class holds, in order."""

    def came(self, size_class: SizeClass, row: int) -> None: ...

    def goes(self, size_class: SizeClass, row: int) -> None:
        """Before it does."""
        ...


@dataclass(slots=True)
class Counters:
    """Blocks, since the agent's start."""

    looked_up: int = 0
    found: int = 0
    stored: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    refused: int = 0
    unadmitted: int = 0
    promoted: int = 0
    expired: int = 0
    #: By cause: what left, and what was not let in.
    causes: list[int] = field(default_factory=lambda: [0] * 32)


class SizeClass:
    """Slots of one size: which are free, which hold which block, who refers to them.

    A slot holds a block (`owner`), or is referred to by leases, holds and reservations
    (`references`), or both; with neither it is free, and only then it is handed out again, with a
    new generation. So a block may be forgotten while somebody still reads it.

    The event loop owns it; movers touch only the memory of slots. Methods are O(log n) a block.
    """

    def __init__(
        self,
        table: SlotTable,
        slot_bytes: int,
        new_policy: PolicyFactory,
        next_generation: Callable[[], int],
        on_idle: Callable[[SizeClass, Extent], None],
        lifetimes: Lifetimes,
    ) -> None:
        self.table = table
        self.slot_bytes = slot_bytes
        self.residency = Residency()
        self.policy = new_policy(self)
        self._marking = self.policy if isinstance(self.policy, Marking) else None
        self._refusing = self.policy if isinstance(self.policy, Refusing) else None
        self.extents: list[Extent] = []
        self.lifetimes = lifetimes
        self.counters = Counters()
        self.unused = Unused()
        self.uses = Uses()
        self.pinned = PinnedRows(self)
        self.used_slots = 0
        self.referenced_slots = 0
        self.grown_at = 0
        #: Is told of slots that were released, beginnings first.
        self.on_release: Callable[[SizeClass, Sequence[int]], None] | None = None
        self._last_row = NONE
        self._next_generation = next_generation
        self._on_idle = on_idle
        #: Is told of a block that is about to go: its row, why, and the id of the namespace that it
        #: makes way for (0: its own).
        self.on_forget: OnForget | None = None
        #: Somebody who watches the namespace.
        self.witness: Witness | None = None
        #: What goes with a block that is evicted; None if its lane is the only one.
        self.companions: Companions | None = None
        self._free = FreeSlots()

    @property
    def extent_bytes(self) -> int:
        return sum(extent.slots for extent in self.extents) * self.slot_bytes

    @property
    def free_slots(self) -> int:
        return len(self._free)

    # Finding and reading.

    def find_many(self, lane: Lane, hashes: Iterable[bytes]) -> list[int]:
        """Rows, -1 where absent, or where a block's time to live is over."""
        return self.lifetimes.alive(self.residency.find_many(lane, hashes))

    def find(self, lane: Lane, block_hash: bytes) -> int:
        """As `find_many`."""
        row = self.residency.find(lane, block_hash)
        return NONE if row != NONE and self.lifetimes.is_over(row) else row

    def slots_of(self, rows: Iterable[int]) -> list[int]:
        slot = self.residency.slot
        return [slot[row] for row in rows]

    def acquire(self, rows: Iterable[int]) -> array[int]:
        """One more reference on each block; returns their slots."""
        references = self.table.references
        slots = array("q", self.slots_of(rows))
        for slot in slots:
            if not references[slot]:
                self.referenced_slots += 1
            references[slot] += 1
        return slots

    def release(self, slots: Sequence[int]) -> None:
        """One reference less on each; the beginning of a prefix comes first in `slots`."""
        references, owner = self.table.references, self.table.owner
        first_child, release = self.residency.first_child, self.policy.release
        for slot in reversed(slots):
            references[slot] -= 1
            if references[slot]:
                continue
            self.referenced_slots -= 1
            row = owner[slot]
            if row == NO_OWNER:
                self._put_back(slot)
            elif first_child[row] == NONE:
                release(row)
        if self.on_release is not None:
            self.on_release(self, slots)

    def touch(self, rows: Sequence[int]) -> None:
        """Marks blocks as used; the beginning of a prefix comes first in `rows`."""
        self.policy.touch(rows)
        self.uses.add(rows)

    def mark(self, row: int) -> None:
        """The block ends a part that many share; for policies that want to know."""
        if self._marking is not None:
            self._marking.mark(row)

    # Writing.

    def worth(self, keys: BlockKeys, index: int) -> float:
        """What may make way for a block that is not here and those that continue it."""
        before = keys.hashes[index - 1] if index else keys.parent
        parent = self.residency.find(keys.lane, before) if before else NONE
        return self.policy.worth(keys.lane, keys.hashes[index], parent)

    def admitted(self, keys: BlockKeys, indexes: Sequence[int]) -> int:
        """How many of the leading ones of blocks that are not here may be stored at all."""
        if not indexes or self.worth(keys, indexes[0]) <= NEVER:
            return 0
        if self._refusing is None:
            return len(indexes)
        return self._refusing.admitted(keys.lane, [keys.hashes[index] for index in indexes])

    def take(self, count: int, worth: float = ALWAYS) -> list[int]:
        """Up to `count` slots, each with a reference and a new generation; evicts what it must of
        what is worth less."""
        if worth <= NEVER:
            return []
        while len(self._free) < count and self.evict_one(worth):
            pass  # what lay in an extent that is being retired leaves no free slot
        slots = self._free.take(count)
        for slot in slots:
            self.table.generations[slot] = self._next_generation()
        self._use(slots)
        return slots

    def take_used_before(self) -> list[int]:
        """Unused slots that have had a generation, each with a reference."""
        generations = self.table.generations
        slots = self._free.take_if(lambda slot: generations[slot] > 0)
        for extent in self.extents:  # what is being emptied has slots that nobody is given
            if extent.retiring and extent.used_slots:
                slots += [slot for slot in self._unused(extent) if generations[slot] > 0]
        self._use(slots)
        return slots

    def _unused(self, extent: Extent) -> list[int]:
        """Populated slots without block and reference."""
        slots = slice(extent.base, extent.base + extent.populated_slots)
        owner, references = self._columns()
        unused = np.flatnonzero((owner[slots] == NO_OWNER) & (references[slots] == 0))
        return [extent.base + index for index in unused.tolist()]

    def _columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Owner and references by slot; not to be kept, or the table cannot grow."""
        table = self.table
        return np.frombuffer(table.owner, np.int64), np.frombuffer(table.references, np.uint32)

    def _use(self, slots: list[int]) -> None:
        table = self.table
        for slot in slots:
            table.references[slot] = 1
            table.extent_of(slot).used_slots += 1
        self.used_slots += len(slots)
        self.referenced_slots += len(slots)

    def commit(
        self,
        lane: Lane,
        block_hash: bytes,
        parent_hash: bytes,
        position: int,
        slot: int,
        *,
        stored_at: int | None = None,
    ) -> BlockStatus:
        """Makes a taken slot a block; the reference on it stays. PRESENT if somebody was first.

        `stored_at` is for a block that was stored elsewhere before, as `Lifetimes` counts.
        """
        row = self.residency.find(lane, block_hash)
        if row != NONE:
            if not self.lifetimes.is_over(row):
                return BlockStatus.PRESENT
            self.expire(row)
        row = self.residency.insert(lane, block_hash, parent_hash, position, slot)
        self.table.owner[slot] = row
        self.lifetimes.begin(row, stored_at)
        self.uses.begin(row)
        self.policy.insert(row)
        self._last_row = row
        if self.witness is not None:
            self.witness.came(self, row)
        return BlockStatus.OK

    def adopt(
        self,
        extent: Extent,
        found: Iterable[tuple[BlockKey, int, int]],
        stored_at: Mapping[int, int] | None = None,
    ) -> None:
        """Populated slots of an extent, not yet handed out, that hold blocks from before the
        agent's start: key, slot, generation. They may be evicted after `admit`. `stored_at` has
        the times of stores by slot; without it they count as stored now.

        Of two that hold one block, that with the greater generation counts.
        """
        residency, table, insert = self.residency, self.table, self.policy.insert
        owner, generations, used = table.owner, table.generations, 0
        for key, slot, generation in found:
            generations[slot] = generation  # also of the loser: its record is still there
            row = residency.find(key.lane, key.block_hash)
            if row != NONE:
                if generations[residency.slot[row]] > generation:
                    continue
                self.forget(row, Cause.SUPERSEDED)
            row = residency.insert(*key, slot)
            owner[slot] = row
            self.lifetimes.begin(row, None if stored_at is None else stored_at[slot])
            self.uses.begin(row)
            used += 1
            insert(row)
            if self.witness is not None:
                self.witness.came(self, row)
        extent.used_slots += used
        self.used_slots += used

    def admit(self, rows: Iterable[int]) -> None:
        """Lets adopted blocks be evicted; the coldest come first."""
        first_child, slot = self.residency.first_child, self.residency.slot
        for row in rows:
            if slot[row] != NONE and first_child[row] == NONE:
                self.policy.release(row)

    # Evicting and moving.

    def evict_one(
        self, worth: float = ALWAYS, cause: Cause = Cause.EVICTED, taker: int = 0
    ) -> bool:
        """Forgets what goes first for something worth so much; False if nothing may go."""
        row = self.policy.victim(worth)
        if row == NONE:
            return False
        if self.companions is None:
            self.forget(row, cause, taker)
        else:
            lane, block_hash = self.residency.describe(row)
            self.forget(row, cause, taker)
            self.companions.follow(lane, block_hash, cause, taker)
        return True

    def is_in_use(self, row: int) -> bool:
        """Whether somebody reads or moves the block; a pin alone does neither."""
        return self.table.references[self.residency.slot[row]] > (row in self.pinned)

    def are_in_use(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The same of many rows that have a block."""
        slots = np.frombuffer(self.residency.slot, np.int64)[rows]
        in_use: npt.NDArray[np.bool_] = self._columns()[1][slots] > self.pinned.of(rows)
        return in_use

    def forget(self, row: int, cause: Cause = Cause.EVICTED, taker: int = 0) -> None:
        """Removes a block; its slot is free at once, or when the last reference goes."""
        if self.on_forget is not None:
            self.on_forget(self, row, cause, taker)
        if self.witness is not None:
            self.witness.goes(self, row)
        slot = self.residency.slot[row]
        if self.pinned.block_count:
            self.pinned.forgetting(row)
        self.policy.remove(row)
        parent = self.residency.remove(row)
        self.table.owner[slot] = NO_OWNER
        self.counters.evicted += 1
        self.counters.causes[cause] += 1
        self.unused.leave(row)
        if not self.table.references[slot]:
            self._put_back(slot)
        if parent != NONE:
            self.policy.release(parent)

    def expire(self, row: int) -> None:
        """Removes a block whose time to live is over, whoever keeps it."""
        self.forget(row, Cause.EXPIRED)
        self.counters.evicted -= 1
        self.counters.expired += 1

    def coldest_rank(self) -> int | None:
        """The rank of what would go next; None if nothing may go."""
        row = self.policy.victim()
        return None if row == NONE else self.policy.rank(row)

    def last_use(self) -> int:
        """The rank of its youngest memory: of a new extent, or of the last block stored."""
        return max(self.grown_at, 0 if self._last_row == NONE else self.policy.rank(self._last_row))

    def is_at(self, row: int, slot: int, generation: int) -> bool:
        """Whether a block is still the one that was in a slot under this generation."""
        return self.table.generations[slot] == generation and self.residency.slot[row] == slot

    def move(self, row: int, source: int, generation: int, target: int) -> bool:
        """Lets a block live in `target` (taken, filled with its bytes), unless it is gone.

        `generation` is the source's from before the copy. Row and slot alone do not tell: both may
        have been used again for another block.
        """
        if not self.is_at(row, source, generation):
            return False
        self.pinned.moving(row, source, target)
        self.residency.slot[row] = target
        self.table.owner[target] = row
        self.table.owner[source] = NO_OWNER
        if not self.table.references[source]:
            self._put_back(source)
        return True

    # Extents.

    def publish(self, extent: Extent, count: int) -> None:
        """The next `count` slots of an extent have their pages and may be handed out."""
        start = extent.base + extent.populated_slots
        extent.populated_slots += count
        if not extent.withheld:
            for slot in range(start, start + count):
                self._free.put(slot, extent.stripe)

    def withdraw(self, extent: Extent) -> None:
        """No slot of the extent is handed out any more; when none is in use, it is idle."""
        extent.retiring = extent.withheld = True
        self._free.withdraw(range(extent.base, extent.base + extent.slots), extent.stripe)
        if not extent.used_slots:
            self._on_idle(self, extent)

    def live_slots(self, extent: Extent) -> list[int]:
        """Slots of an extent that hold blocks."""
        owner, _ = self._columns()
        live = np.flatnonzero(owner[extent.base : extent.base + extent.slots] != NO_OWNER)
        return [extent.base + index for index in live.tolist()]

    def idle_slots(self, extent: Extent, most: int = 1 << 30) -> list[int]:
        """Up to `most` slots of an extent that hold blocks to which nobody refers."""
        idle = np.flatnonzero(self._is_idle(extent))[:most]
        return [extent.base + index for index in idle.tolist()]

    def idle_slot_count(self, extent: Extent) -> int:
        return int(np.count_nonzero(self._is_idle(extent)))

    def _is_idle(self, extent: Extent) -> npt.NDArray[np.bool_]:
        slots = slice(extent.base, extent.base + extent.slots)
        owner, references = self._columns()
        idle: npt.NDArray[np.bool_] = (owner[slots] != NO_OWNER) & (references[slots] == 0)
        return idle

    def restore(self, extent: Extent) -> None:
        """Slots of a withheld extent are handed out again: takes `withdraw` back."""
        extent.retiring = extent.withheld = False
        for slot in self._unused(extent):
            self._free.put(slot, extent.stripe)

    def has_references(self, extent: Extent) -> bool:
        _, references = self._columns()
        return bool(references[extent.base : extent.base + extent.slots].any())

    def _put_back(self, slot: int) -> None:
        extent = self.table.extent_of(slot)
        extent.used_slots -= 1
        self.used_slots -= 1
        if not extent.withheld:
            self._free.put(slot, extent.stripe)
        elif extent.retiring and not extent.used_slots:
            self._on_idle(self, extent)

    def is_evictable(self, row: int) -> bool:
        slot = self.residency.slot[row]
        return slot != NONE and not self.table.references[slot] and self.residency.is_leaf(row)

    def check_integrity(self) -> None:
        """Raises AssertionError if books disagree."""
        table = self.table
        self.pinned.check_integrity()
        self.residency.check_integrity(lambda slot, row: table.owner[slot] == row)
        slots = [slot for extent in self.extents for slot in self.live_slots(extent)]
        assert len(slots) == len(self.residency), (len(slots), len(self.residency))
        free = set(self._free)
        assert len(free) == len(self._free)
        used = referenced = 0
        for extent in self.extents:
            in_extent = 0
            for slot in range(extent.base, extent.base + extent.slots):
                busy = table.references[slot] > 0 or table.owner[slot] != NO_OWNER
                referenced += table.references[slot] > 0
                in_extent += busy
                populated = slot < extent.base + extent.populated_slots
                assert busy <= populated, slot
                assert (slot in free) == (populated and not busy and not extent.withheld), slot
            assert in_extent == extent.used_slots, extent.extent_id
            used += in_extent
        assert used == self.used_slots, (used, self.used_slots)
        assert referenced == self.referenced_slots, (referenced, self.referenced_slots)

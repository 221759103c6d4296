"""Bringing a tier within a capacity that is less than what it has."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from kvtier.agent.placing.retirement import SPARE, choose, offers, ordered
from kvtier.agent.turns import slices
from kvtier.core.cause import Cause
from kvtier.core.residency import NONE
from kvtier.core.slots import SLOTS_PER_PAGE
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import NO_OWNER, Extent

if TYPE_CHECKING:
    from kvtier.agent.placing.placement import Placement

#: Blocks: looking for what is coldest costs as much as evicting it.
_SLICE = 32
_EXTENT_SLICE = 16
#: Extents out of which blocks move at a time.
_SIDE_BY_SIDE = 4
#: An extent in use for so long is not waited for if others can go in its place.
_PATIENCE_SECONDS = 10.0
_MOVE_BYTES = 16 << 20
_EVICTED_AT_A_TIME = 256


class Shrinking:
    """Empties extents, coldest blocks first, while the tier goes on; nothing grows meanwhile.

    Extents that are to go are withdrawn first, so that nothing comes into them. Then the class's
    coldest blocks are evicted, wherever they are, until the rest has room, and what is left in
    those extents moves. A block that somebody uses stays where it is until it is released; so an
    extent goes when the last of its leases ends.

    `before_evicting` is awaited for blocks that are about to go; `is_reachable` says whether an
    extent can be given back now, `make_way` removes what is in the way beside extents.
    """

    def __init__(self, placement: Placement) -> None:
        self.before_evicting: Callable[[SizeClass, list[int]], Awaitable[None]] | None = None
        self.is_reachable: Callable[[Extent], bool] = lambda extent: True
        self.make_way: Callable[[], Awaitable[None]] | None = None
        self._placement = placement
        self._tier = placement.tier
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        #: Somebody must release something before it can go on.
        self.is_waiting = False
        self._choice = 0
        #: Withdrawn, and not empty yet.
        self._yielding: dict[Extent, SizeClass] = {}
        #: Since when there is nothing in them but what somebody uses.
        self._blocked: dict[Extent, float] = {}
        #: Classes whose blocks found no room when they were to move.
        self._crowded: set[SizeClass] = set()

    @property
    def is_active(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """The capacity has changed; what was chosen for another one is chosen again."""
        self._choice += 1
        self._restore(list(self._yielding))
        if not self.is_active:
            self._task = self._placement.spawn(self._run())
        self._wake.set()

    def wake(self) -> None:
        """Something has changed that may let it go on."""
        self._wake.set()

    def note_idle(self, extent: Extent) -> None:
        """An extent is empty, and is about to be given back."""
        self._yielding.pop(extent, None)
        self._blocked.pop(extent, None)
        self._wake.set()

    async def _run(self) -> None:
        space = self._tier.space
        try:
            if self.make_way is not None:
                await self.make_way()
            while space.excess_bytes():
                self._wake.clear()
                has_chosen = await self._withdraw_some()
                has_emptied = await self._empty_all()
                if not has_chosen and not has_emptied:
                    await self._wait()
                await asyncio.sleep(0)
                if self.make_way is not None:
                    await self.make_way()
        finally:
            self._restore(list(self._yielding))
            for size_class in self._tier.classes:
                size_class.on_release = None
            self._tier.is_shrinking = False

    async def _wait(self) -> None:
        """Until something changes, or an extent has been in use for too long."""
        now = asyncio.get_running_loop().time()
        ends = [since + _PATIENCE_SECONDS - now for since in self._blocked.values()]
        delay = min((each for each in ends if each > 0), default=None)
        self.is_waiting = not self._wake.is_set()
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()
        self.is_waiting = False

    # Choosing extents.

    def _needed(self, extents: Sequence[Extent]) -> dict[int, int]:
        """By stripe, what must go beside these extents and what is leaving already."""
        needed = self._tier.space.excess_bytes()
        for extent in (*self._placement.leaving, *extents):
            if extent.stripe in needed:
                needed[extent.stripe] -= self._tier.space.counted_bytes(extent)
        return {stripe: size for stripe, size in needed.items() if size > 0}

    def _is_stuck(self, extent: Extent) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._blocked.get(extent, now) >= _PATIENCE_SECONDS

    async def _withdraw_some(self) -> bool:
        """Withdraws extents of the coldest class, if more must go; whether it did."""
        stuck = [each for each in self._yielding if self._is_stuck(each)]
        needed = self._needed([each for each in self._yielding if each not in stuck])
        if not needed:
            return False
        choice, space = self._choice, self._tier.space
        for coldness, _, size_class in sorted(found := await offers(self._tier, needed)):
            extents = await ordered(size_class, needed, with_references=not stuck)
            chosen: list[Extent] = []
            if coldness == SPARE:
                chosen = choose(space, extents, needed, most_slots=size_class.free_slots)
            chosen = chosen or choose(space, extents, needed, share=min(2, len(found)))
            for extent in chosen:
                if choice == self._choice and not (extent.retiring or extent.populating):
                    self._yielding[extent] = size_class
                    size_class.on_release = self._released
                    size_class.withdraw(extent)
                    await asyncio.sleep(0)
            if chosen:
                return True
        return False

    def _restore(self, extents: Sequence[Extent]) -> None:
        """They stay after all, with what is in them."""
        for extent in extents:
            size_class = self._yielding.pop(extent)
            self._blocked.pop(extent, None)
            size_class.restore(extent)

    # Emptying them.

    async def _empty_all(self) -> bool:
        """Whether any block left them."""
        by_class: defaultdict[SizeClass, list[Extent]] = defaultdict(list)
        for extent, size_class in self._yielding.items():
            by_class[size_class].append(extent)
        self._crowded.clear()
        results = [await self._empty(*each) for each in by_class.items()]
        return any(results)

    async def _empty(self, size_class: SizeClass, extents: list[Extent]) -> bool:
        full, count = await self._with_blocks(size_class, extents)
        if not count:
            return False
        if not self._placement.may_evict():
            return await self._drop_all(size_class, full)
        evicted = await self._evict(size_class, count - size_class.free_slots)
        moved = False
        for first in range(0, len(full), _SIDE_BY_SIDE):
            self._spare_surplus()
            batch = full[first : first + _SIDE_BY_SIDE]
            results = await asyncio.gather(*(self._move_out(size_class, each) for each in batch))
            moved |= any(results)
        return bool(evicted) or moved

    async def _with_blocks(
        self, size_class: SizeClass, extents: list[Extent]
    ) -> tuple[list[Extent], int]:
        """Those that have blocks which nobody uses, and how many."""
        found, count = [], 0
        now = asyncio.get_running_loop().time()
        async for part in slices(len(extents), _EXTENT_SLICE):
            for extent in extents[part]:
                if extent not in self._yielding:
                    continue
                idle = size_class.idle_slot_count(extent)
                count += idle
                if idle:
                    found.append(extent)
                    self._blocked.pop(extent, None)
                else:
                    self._blocked.setdefault(extent, now)
        return found, count

    def _spare_surplus(self) -> None:
        """What is leaving already may be enough."""
        needed = self._needed(())
        self._restore([each for each in self._yielding if each.stripe not in needed])

    async def _evict(self, size_class: SizeClass, count: int) -> int:
        """Evicts so many of the coldest, or what may go."""
        done = 0
        while done < count:
            batch = min(count - done, _EVICTED_AT_A_TIME)
            if self.before_evicting is not None:
                evicted = await self._evict_told(size_class, batch)
            else:
                evicted = 0
            if not evicted:
                batch = min(batch, _SLICE) if self.before_evicting is None else 1
                evicted = sum(size_class.evict_one(cause=Cause.RESIZED) for _ in range(batch))
            if not evicted:
                break
            done += evicted
            await asyncio.sleep(0)
            if not self._yielding:
                break
        return done

    async def _evict_told(self, size_class: SizeClass, most: int) -> int:
        """Evicts what is coldest, when whoever wants to has been told; not what is used
        meanwhile."""
        assert self.before_evicting is not None
        residency, rank = size_class.residency, size_class.policy.rank
        rows = _coldest(size_class, most)
        told = [(row, residency.describe(row)[1], rank(row)) for row in rows]
        await self.before_evicting(size_class, rows)
        evicted = 0
        for number, (row, block_hash, rank_before) in enumerate(told, 1):
            is_current = residency.describe(row)[1] is block_hash
            if is_current and size_class.is_evictable(row) and rank(row) == rank_before:
                size_class.forget(row, Cause.RESIZED)
                evicted += 1
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return evicted

    async def _move_out(self, size_class: SizeClass, extent: Extent) -> bool:
        has_moved = False
        while extent in self._yielding and self._placement.may_evict():
            idle = size_class.idle_slots(extent, self._move_count(size_class))
            if not idle:
                break
            has_room = size_class.free_slots or size_class.policy.victim() != NONE
            if not (has_room and await self._placement.move(size_class, idle)):
                self._crowded.add(size_class)
                break
            has_moved = True
        return has_moved

    def _move_count(self, size_class: SizeClass) -> int:
        return max(1, min(_SLICE, _MOVE_BYTES // size_class.slot_bytes))

    async def _drop_all(self, size_class: SizeClass, extents: list[Extent]) -> bool:
        """Evicts what is in them, with what continues it: nothing can be written elsewhere."""
        has_dropped = False
        for extent in extents:
            if extent not in self._yielding or not self.is_reachable(extent):
                continue
            for number, slot in enumerate(size_class.idle_slots(extent), 1):
                row = size_class.table.owner[slot]
                if row != NO_OWNER:
                    has_dropped |= await _drop(size_class, row)
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
            if size_class.idle_slot_count(extent):
                self._crowded.add(size_class)
        return has_dropped

    def _released(self, size_class: SizeClass, slots: Sequence[int]) -> None:
        if self._wake.is_set():
            return
        owner, pages = size_class.table.owner, size_class.table.extents
        for slot in slots:
            extent = pages[slot // SLOTS_PER_PAGE]
            has_block = owner[slot] != NO_OWNER and extent is not None and extent.retiring
            if has_block or size_class in self._crowded:
                self._wake.set()
                return


def _coldest(size_class: SizeClass, most: int) -> list[int]:
    """What would go first, and the prefixes before it; ends before their beginnings."""
    rows: dict[int, None] = {}
    for row in size_class.policy.coldest(most):
        while row != NONE and row not in rows and len(rows) < most:
            rows[row] = None
            row = size_class.residency.parent(row)
    return list(rows)


async def _drop(size_class: SizeClass, row: int) -> bool:
    """Evicts a block and what continues it, ends first, as far as nobody uses it; whether any
    block went."""
    first_child, block_hash = (
        size_class.residency.first_child,
        size_class.residency.describe(row)[1],
    )
    path, steps, has_dropped = [row], 0, False
    while path:
        row = path[-1]
        child = first_child[row]
        if child != NONE:
            path.append(child)
        elif size_class.is_evictable(row):
            size_class.forget(row, Cause.RESIZED)
            path.pop()
            has_dropped = True
        else:
            break
        steps += 1
        if steps % _SLICE == 0:
            await asyncio.sleep(0)
            del path[1:]  # rows may be others' by now
            if path and size_class.residency.describe(path[0])[1] is not block_hash:
                break
    return has_dropped

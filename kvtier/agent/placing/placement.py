"""Making room in a tier: growing, evicting, and taking extents from colder size classes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from kvtier.agent.placing.device_speed import DeviceSpeed
from kvtier.agent.placing.shrinking import Shrinking
from kvtier.agent.turns import WRITE_SLICE, data_line
from kvtier.core.cause import Cause
from kvtier.core.policies.base import ALWAYS
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import NO_OWNER, Extent
from kvtier.tiers.slot_tier import SlotTier

log = logging.getLogger(__name__)

T = TypeVar("T")

_POPULATE_BYTES = 8 << 20
#: Ahead of need, so much longer than a step is the pause after it, up to the longest.
_AHEAD_PAUSE = 4
_LONGEST_PAUSE_SECONDS = 0.5
_MOVE_BYTES = 16 << 20
_PAUSE_SECONDS = 1.0
_FRUITLESS_TRADES = 16


class Run(Protocol):
    """Runs a call in a thread that works for the place where an extent lies."""

    def __call__(self, extent: Extent, call: Callable[..., T], *args: Any) -> Awaitable[T]: ...


class Placement:
    """Runs what a tier decides. Nothing polls: work starts when a block needs room.

    `run` lets a mover call something for an extent. `spare_bytes` says how much more the machine
    can give beyond its reserve; `step_bytes` of it are populated at a time. Nothing is evicted
    while `may_evict` says no. `on_retired` is told of
    extents whose space is gone, so that workers unmap them.
    """

    def __init__(
        self,
        tier: SlotTier,
        run: Run,
        *,
        spare_bytes: Callable[[], int],
        step_bytes: int = _POPULATE_BYTES,
        may_evict: Callable[[], bool] = lambda: True,
    ) -> None:
        self.tier = tier
        tier.on_idle = self._discard_soon
        self.on_retired: Callable[[Extent], None] = lambda extent: None
        self._run = run
        self._spare_bytes = spare_bytes
        self._step_bytes = step_bytes
        self.may_evict = may_evict
        self.shrinking = Shrinking(self)
        #: Extents that are empty, and that count until their space is given back.
        self.leaving: set[Extent] = set()
        self._growing: set[SizeClass] = set()
        self._waiting = 0
        self._wanted = asyncio.Event()
        self._populating = DeviceSpeed()
        self._trading: set[SizeClass] = set()
        self._trade_after: WeakKeyDictionary[SizeClass, int] = WeakKeyDictionary()
        self._takers: dict[Extent, SizeClass] = {}
        self._moves: set[asyncio.Task[None]] = set()
        self._discards: dict[Extent, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._undiscarded: list[Extent] = []
        self._changed = asyncio.Event()
        self._is_short = False
        self._growth_error = ""
        self._pause_until = 0.0

    def resize(self, capacity_bytes: int) -> None:
        """Changes the capacity. Growing is at once, shrinking goes on in the background; the last
        call counts."""
        self.tier.resize(capacity_bytes)
        self.shrinking.start()
        self._notify()

    async def make_room(self, size_class: SizeClass, wanted: int, worth: float = ALWAYS) -> None:
        """Returns when that many slots are free, or nothing more can be done now for something
        worth so much.

        It waits for pages to be populated and for blocks to be moved, never for a lease. The caller
        holds no slots while it waits.
        """
        most_bytes = fruitless = 0
        while size_class.free_slots < wanted:
            changed = self._changed
            if not self._grow(size_class):
                if not self.may_evict():
                    return  # nothing could be written in their place
                await self._evict(
                    size_class,
                    lambda: size_class.free_slots >= wanted,
                    worth,
                    cause=self._why_full(size_class),
                )
                if size_class.free_slots >= wanted:
                    self._trade_if_due(size_class)
                    return
                if size_class.policy.victim() != NONE:
                    return  # what is here is worth more
                if size_class not in self._trading:
                    # Two classes that both want more than there is would take from each other for
                    # ever. Many small extents may have to go before one large slot fits.
                    reach = size_class.extent_bytes + self.tier.free_bytes
                    fruitless = 0 if reach > most_bytes else fruitless + 1
                    most_bytes = max(most_bytes, reach)
                    if fruitless > _FRUITLESS_TRADES:
                        return
                    if not self._trade(size_class) and not self._trading:
                        return
            await self._wait_for(changed)

    async def _wait_for(self, changed: asyncio.Event) -> None:
        self._waiting += 1
        self._wanted.set()
        try:
            await changed.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._wanted.clear()

    def _why_full(self, size_class: SizeClass) -> Cause:
        """What a block has to blame that makes way for others of its class."""
        holding = self.tier.holding(size_class.table.namespace_id)
        is_limited = holding.growth_bytes < size_class.slot_bytes
        return Cause.OVER_QUOTA if is_limited else Cause.EVICTED

    def grow_ahead(self, size_class: SizeClass) -> None:
        """Populates ahead of need, from memory that no class has yet: until a quarter of what the
        class has is free."""
        if size_class.free_slots * size_class.slot_bytes < size_class.extent_bytes // 4:
            self._grow(size_class)

    async def close(self) -> None:
        """Ends background work; what is in a mover's hands completes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _evict(
        self,
        size_class: SizeClass,
        enough: Callable[[], bool],
        worth: float = ALWAYS,
        cause: Cause = Cause.EVICTED,
        taker: int = 0,
    ) -> None:
        """Until that is enough, or nothing more may go."""
        for done in itertools.count(1):
            if enough() or not size_class.evict_one(worth, cause, taker):
                return
            if done % WRITE_SLICE == 0:
                await data_line().turn()

    async def settled(self, timeout_seconds: float) -> None:
        """Returns when blocks that are being moved have been, and extents that were empty are gone.
        Raises TimeoutError."""
        if under_way := {*self._moves, *self._discards.values()}:
            _, pending = await asyncio.wait(under_way, timeout=timeout_seconds)
            if pending:
                raise TimeoutError(f"blocks are being moved for over {timeout_seconds:g} s")

    def shed_excess(self) -> None:
        """Begins to take from holdings what they have beyond their limits, an extent at a time.

        For a start with other limits, and when the capacity has changed.
        """
        for size_class in self.tier.over_limit:
            self._trade(size_class)

    # Growing.

    def seconds_until_room(self, size_class: SizeClass, slots: int) -> float:
        """The estimate of how long so many free slots take to be had: what has to be populated
        takes time, and what makes way hardly any."""
        missing = slots - size_class.free_slots
        if missing <= 0 or not self.tier.can_grow(size_class):
            return 0.0
        return self._populating.seconds(missing * size_class.slot_bytes)

    def _grow(self, size_class: SizeClass) -> bool:
        """Whether the class is growing now."""
        if size_class in self._growing:
            return True
        # Asking for memory reads several files of /proc: last, and only if there is a use for it.
        if not self.tier.can_grow(size_class) or self._spare_slots(size_class.slot_bytes) < 1:
            return False
        extent = self.tier.grow(size_class)
        extent.populating = True
        self._growing.add(size_class)
        self.spawn(self._populate(size_class, extent))
        return True

    async def _populate(self, size_class: SizeClass, extent: Extent) -> None:
        now, seconds = asyncio.get_running_loop().time, 0.0
        try:
            while extent.populated_slots < extent.slots:
                await self._pause_unless_wanted(_AHEAD_PAUSE * seconds)
                count = max(1, self._step_bytes // extent.slot_bytes)
                count = min(count, extent.slots - extent.populated_slots)
                count = min(count, self._spare_slots(extent.slot_bytes))
                if count < 1:
                    break
                began = now()
                await self._run(extent, extent.populate, count)
                seconds = now() - began
                self._populating.note(count * extent.slot_bytes, seconds)
                size_class.publish(extent, count)
                self._growth_error = ""
                self._notify()
        except OSError as error:
            if str(error) != self._growth_error:
                log.error("%s cannot grow: %s; trying again later", self.tier.tier.name, error)
            self._growth_error = str(error)
            if not extent.populated_slots:  # the next attempt may be smaller
                extent.retiring = extent.withheld = True
                self._discard_soon(size_class, extent)
            self._pause_until = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        finally:
            extent.populating = False
            self._growing.discard(size_class)

    async def _pause_unless_wanted(self, seconds: float) -> None:
        """Zeroing pages is work for the processors that the engine computes on."""
        if not self._wanted.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, _LONGEST_PAUSE_SECONDS)):
                    await self._wanted.wait()

    def _spare_slots(self, slot_bytes: int) -> int:
        """How many slots may be populated now."""
        if self.tier.is_shrinking or asyncio.get_running_loop().time() < self._pause_until:
            return 0
        slots = self._spare_bytes() // slot_bytes
        if slots < 1 and not self._is_short:
            log.warning("%s stops growing: the machine has no more to spare", self.tier.tier.name)
        self._is_short = slots < 1
        return slots

    # Trading.

    def _trade_if_due(self, taker: SizeClass) -> None:
        """Trades for a class that can do without.

        Looking for a donor visits every class: only after each sixteenth of its slots evicted.
        """
        evicted = taker.counters.evicted
        if evicted >= self._trade_after.get(taker, 0):
            self._trade_after[taker] = evicted + taker.extent_bytes // taker.slot_bytes // 16
            self._trade(taker)

    def _trade(self, taker: SizeClass) -> bool:
        """Whether an extent is being taken from another class for this one."""
        if taker in self._trading:
            return True
        if self.tier.is_shrinking:
            return False
        for donor in self.tier.donors(taker):
            extent = self.tier.extent_to_retire(donor, taker)
            if extent is not None:
                self._start_trade(taker, donor, extent)
                return True
        return False

    def _start_trade(self, taker: SizeClass, donor: SizeClass, extent: Extent) -> None:
        self._trading.add(taker)
        self._takers[extent] = taker
        # At once: a slot of it that is reserved in the meantime could not be moved.
        donor.withdraw(extent)
        move = self.spawn(self._take_extent(taker, donor, extent))
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _take_extent(self, taker: SizeClass, donor: SizeClass, extent: Extent) -> None:
        """Evicts the donor's coldest blocks, moves what is left in the extent, gives it back."""
        try:
            await self._evict(
                donor,
                lambda: donor.free_slots >= extent.used_slots,
                cause=Cause.OVER_QUOTA if taker is donor else Cause.TRADED,
                taker=taker.table.namespace_id,
            )
            batch = max(1, _MOVE_BYTES // donor.slot_bytes)
            while live := donor.live_slots(extent)[:batch]:
                if not await self._try_to_move(donor, live) and extent not in self._discards:
                    donor.restore(extent)
                    del self._takers[extent]
                    return
            if extent in self._discards:
                await asyncio.shield(self._discards[extent])
        finally:
            self._trading.discard(taker)
        self.shed_excess()

    async def move(self, size_class: SizeClass, sources: list[int]) -> bool:
        """Moves blocks that nobody uses to other slots of their class; those that are used
        meanwhile stay. False if there is no slot for them, or that fails."""
        result: list[bool] = []

        async def move() -> None:
            result.append(await self._try_to_move(size_class, sources, leave_used=True))

        task = self.spawn(move())
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)
        await asyncio.wait([task])
        return any(result)

    async def _try_to_move(
        self, size_class: SizeClass, sources: list[int], *, leave_used: bool = False
    ) -> bool:
        try:
            return await self._move(size_class, sources, leave_used=leave_used)
        except OSError as error:
            log.error("%s: blocks cannot be moved: %s", self.tier.tier.name, error)
            return False

    async def _move(
        self, size_class: SizeClass, sources: list[int], *, leave_used: bool = False
    ) -> bool:
        """Moves blocks to other slots of their class; False if there is none."""
        table = size_class.table
        targets = size_class.take(len(sources))
        moves = [  # making room for the targets may have evicted some of the sources
            (table.owner[a], a, table.generations[a], b)
            for a, b in zip(sources, targets, strict=False)
            if table.owner[a] != NO_OWNER
        ]
        # Until the copy ends the sources stay in use: reading an extent that has been punched would
        # bring its pages back.
        guarded = size_class.acquire([row for row, _, _, _ in moves])
        try:
            copying = self.tier.space.copying(size_class, [(row, a, b) for row, a, _, b in moves])
            whole = await self._run(table.extent_of(sources[0]), copying)
            for (row, source, generation, target), is_whole in zip(moves, whole, strict=True):
                if leave_used and table.references[source] > 1:  # of somebody else too
                    continue
                if is_whole:
                    size_class.move(row, source, generation, target)
                elif size_class.is_at(row, source, generation):
                    size_class.forget(row, Cause.DAMAGED)
        finally:
            size_class.release(targets)
            size_class.release(guarded)
        return bool(targets)

    def _discard_soon(self, size_class: SizeClass, extent: Extent) -> None:
        self.leaving.add(extent)
        self._discards[extent] = self.spawn(self._discard(size_class, extent))
        self.shrinking.note_idle(extent)

    async def _discard(self, size_class: SizeClass, extent: Extent) -> None:
        self.tier.discard(size_class, extent)
        await self._give_back(extent)
        del self._discards[extent]
        # In the same turn, or the donor itself could have it back first.
        taker = self._takers.pop(extent, None)
        if taker in self.tier.classes:
            self._grow(taker)
        self.on_retired(extent)

    async def _give_back(self, extent: Extent) -> None:
        """An extent that cannot be discarded goes on counting."""
        try:
            await self._run(extent, extent.discard)
        except OSError as error:
            log.error("%s cannot give space back: %s", self.tier.tier.name, error)
            self._undiscarded.append(extent)
        else:
            self.tier.space.retire(extent)
            self.leaving.discard(extent)

    def discard_again(self) -> None:
        """What could not be discarded may be by now."""
        extents, self._undiscarded = self._undiscarded, []
        for extent in extents:
            self.spawn(self._give_back(extent))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs background work that ends with `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._notify()
        if not task.cancelled() and task.exception():
            log.error("making room failed", exc_info=task.exception())

    def _notify(self) -> None:
        """Wakes everybody who waits for room."""
        self.shrinking.wake()
        self._changed.set()
        self._changed = asyncio.Event()

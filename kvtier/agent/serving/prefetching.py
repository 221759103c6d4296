"""To HOST ahead of use, within a budget."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.job_queue import Kind
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.serving.read_ahead import continuation
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import READ_SLICE, slices
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import SizeClass

_EVERYTHING = frozenset(Tier)
#: Blocks of a wish that set out together.
_STEP_BLOCKS = 32
_MOST_WISHES = 1024
_MOST_HASHES = 1 << 18
_MOST_WAITERS = 16
#: How often it is looked whether anybody waits still.
_WATCH_SECONDS = 0.25

_Name = tuple[SizeClass, Lane, bytes, bytes]

Waiter = Callable[[], bool]
"""Whether somebody waits still."""


@dataclass(frozen=True)
class PrefetchOptions:
    """`max_in_flight_bytes` are under way at one time; blocks that came and were not used yet are
    at most `max_share` of HOST; `read_ahead_blocks` follow what is asked for (0: none). A worker
    that has not come within `patience_seconds` has forgotten what it asked for."""

    max_in_flight_bytes: int = 64 << 20
    max_share: float = 0.25
    read_ahead_blocks: int = 0
    patience_seconds: float = 60.0


class Purpose(IntEnum):
    """Why something is prefetched; the lowest goes first."""

    REQUEST = 0
    READ_AHEAD = 1
    #: The policy expects that somebody will ask for it.
    EXPECTED = 2


@dataclass(eq=False)
class _Wish:
    """A prefix that is to be in HOST. `waiting` are the indexes of the blocks that have not set out
    yet; `flights` of the others may have landed."""

    namespace: Namespace
    keys: BlockKeys
    purpose: Purpose
    generation_id: bytes
    waiters: list[Waiter]
    waiting: deque[int] = field(default_factory=deque)
    flights: list[Flight] = field(default_factory=list)

    @property
    def host(self) -> SizeClass:
        return self.namespace.groups[self.keys.lane.group]

    @property
    def is_wanted(self) -> bool:
        is_renewed = self.namespace.generation_id != self.generation_id
        if is_renewed or self.namespace.is_renewing:
            return False
        return any(is_waiting() for is_waiting in self.waiters)

    @property
    def is_done(self) -> bool:
        return not self.waiting and all(flight.landed for flight in self.flights)

    def take_over(self, other: _Wish) -> None:
        """Becomes a later one for the same blocks, of which other ones may be missing now."""
        waiters = self.waiters if self.is_wanted else []
        self.waiters = [*waiters, *other.waiters][-_MOST_WAITERS:]
        self.keys, self.generation_id = other.keys, other.generation_id
        self.purpose = min(self.purpose, other.purpose)
        self.waiting = other.waiting
        self.flights += other.flights


class Prefetching:
    """Brings what is wished, as fast as the budget allows: requests first, then what follows them,
    then what a policy expects; of equals, the oldest.

    A wish that nobody waits for ends, as does one that finds workers waiting (`may_go_on`): what of
    it has not begun is dropped. Nothing of it is waited
    for by loads, which take a flight over when they join it (`Promotion`).
    """

    def __init__(self, promotion: Promotion, options: PrefetchOptions | None = None) -> None:
        self.options = options or PrefetchOptions()
        self._promotion = promotion
        self._wishes: dict[_Name, _Wish] = {}
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._is_running = False
        self._watched_at = 0.0
        promotion.on_landed = lambda flight: self._changed.set()
        #: Whether there is room for it beside what workers wait for.
        self.may_go_on: Callable[[], bool] = lambda: True

    # Asking.

    async def ask(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        purpose: Purpose = Purpose.REQUEST,
        *,
        is_waiting: Waiter | None = None,
    ) -> int:
        """How many leading blocks are in HOST, or will be as far as anybody can tell now.

        What is beyond the budget is refused. It goes on until nobody waits; `is_waiting` says so,
        and without it the asker waits to the end.
        """
        host = namespace.groups[keys.lane.group]
        name = (host, keys.lane, keys.hashes[0], keys.hashes[-1])
        known = self._wishes.get(name)
        coming = {known.keys.hashes[index] for index in known.waiting} if known else set()
        accepted, missing, under_way = await self._accept(namespace, keys, coming)
        if not missing and not under_way:
            return accepted
        if namespace.is_renewing or self._is_full or not self.may_go_on():
            return min([accepted, *missing])
        keys = BlockKeys(keys.lane, keys.hashes[:accepted], keys.parent, keys.position)
        wish = _Wish(namespace, keys, purpose, namespace.generation_id, [is_waiting or _always])
        wish.waiting.extend(missing)
        wish.flights += under_way
        self._promotion.wish(under_way)
        self._add(name, wish)
        return accepted

    @property
    def _is_full(self) -> bool:
        wishes = self._wishes.values()
        hashes = sum(len(wish.keys.hashes) for wish in wishes)
        return len(wishes) >= _MOST_WISHES or hashes >= _MOST_HASHES

    def patience(self) -> Waiter:
        """Waits for as long as a worker may take to come."""
        now = asyncio.get_running_loop().time
        until = now() + self.options.patience_seconds
        return lambda: now() < until

    async def _accept(
        self, namespace: Namespace, keys: BlockKeys, coming: set[bytes]
    ) -> tuple[int, list[int], list[Flight]]:
        """The leading blocks that are here or may come, which of them are to be brought, and those
        that are being prefetched for others."""
        host, lane = namespace.groups[keys.lane.group], keys.lane
        room = (self._share_bytes() - self._waiting_bytes) // host.slot_bytes
        missing: list[int] = []
        under_way: list[Flight] = []
        async for part in slices(len(keys.hashes), READ_SLICE):
            hashes = keys.hashes[part]
            rows = host.find_many(lane, hashes)
            found = self._promotion.find(namespace, lane, hashes, _EVERYTHING)
            for index, (row, block_hash) in enumerate(zip(rows, hashes, strict=True), part.start):
                flight = self._promotion.flight(host, lane, block_hash)
                if flight is not None and flight.kind is Kind.PREFETCH:
                    under_way.append(flight)
                if row != NONE or flight is not None:
                    continue
                is_charged = block_hash in coming
                if found[index - part.start] is None or (not is_charged and room <= 0):
                    return index, missing, under_way
                room -= not is_charged
                missing.append(index)
        return len(keys.hashes), missing, under_way

    def _share_bytes(self) -> int:
        """What of HOST may still be filled ahead of use."""
        host = self._promotion.host
        unused = sum(each.unused.count * each.slot_bytes for each in host.classes)
        most = int(self.options.max_share * host.space.capacity_bytes)
        return most - unused - self._promotion.ahead_bytes

    def read_ahead(self, namespace: Namespace, keys: BlockKeys) -> None:
        """Somebody asked for a prefix: what was used with it before comes too."""
        count = self.options.read_ahead_blocks
        if not count or Tier.DISK not in namespace.tiers or not keys.hashes:
            return
        following = continuation(namespace, keys, count)
        if following is not None:
            self._promotion.spawn(self._ask_for_following(namespace, following))

    async def _ask_for_following(self, namespace: Namespace, keys: BlockKeys) -> None:
        await self.ask(namespace, keys, Purpose.READ_AHEAD, is_waiting=self.patience())

    # Using.

    def used(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], rows: Sequence[int]
    ) -> None:
        """Blocks in HOST are loaded or touched. Those that came ahead of that count as used on DISK
        now."""
        used = set(namespace.groups[lane.group].unused.use(row for row in rows if row != NONE))
        if used and Tier.DISK in namespace.tiers:
            disk = namespace.tiers[Tier.DISK][lane.group]
            names = [each for each, row in zip(hashes, rows, strict=True) if row in used]
            disk.touch([row for row in disk.find_many(lane, names) if row != NONE])

    # Bringing.

    def _add(self, name: _Name, wish: _Wish) -> None:
        """One for the same blocks takes it over."""
        known = self._wishes.setdefault(name, wish)
        if known is not wish:
            self._give_up(known)
            known.take_over(wish)
        self._waiting_bytes += len(known.waiting) * known.host.slot_bytes
        self._changed.set()
        if not self._is_running:
            self._is_running = True
            self._promotion.spawn(self._run())

    async def _run(self) -> None:
        """Until no wish is left."""
        now = asyncio.get_running_loop().time
        try:
            while self._wishes:
                self._changed.clear()
                if now() - self._watched_at >= _WATCH_SECONDS or not self._next():
                    self._watched_at = now()
                    self._end_unwanted()
                wish = self._next()
                if wish is not None:
                    await self._bring_some(wish)
                elif self._wishes:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_WATCH_SECONDS):
                            await self._changed.wait()
        finally:
            self._is_running = False

    def _end_unwanted(self) -> None:
        for name, wish in list(self._wishes.items()):
            if wish.is_done or not wish.is_wanted:
                del self._wishes[name]
                self._give_up(wish)
                self._promotion.unwish(wish.flights)

    def _give_up(self, wish: _Wish) -> None:
        """What has not set out does not."""
        self._waiting_bytes -= len(wish.waiting) * wish.host.slot_bytes
        wish.waiting.clear()

    def _next(self) -> _Wish | None:
        """The wish whose turn it is, if there is room in the budget for a block of it."""
        waiting = [wish for wish in self._wishes.values() if wish.waiting]
        wish = min(waiting, key=lambda each: each.purpose, default=None)
        return wish if wish is not None and self._blocks_now(wish) else None

    def _blocks_now(self, wish: _Wish) -> int:
        """How many blocks may set out; one larger than the budget may if it is alone."""
        under_way, slot_bytes = self._promotion.prefetch_bytes, wish.host.slot_bytes
        room = self.options.max_in_flight_bytes - under_way
        return min(_STEP_BLOCKS, max(room // slot_bytes, 0 if under_way else 1))

    async def _bring_some(self, wish: _Wish) -> None:
        host, keys = wish.host, wish.keys
        most = min(self._blocks_now(wish), self._share_bytes() // host.slot_bytes)
        if most < 1 or not self.may_go_on():
            self._give_up(wish)
            return
        indexes = [wish.waiting.popleft() for _ in range(min(most, len(wish.waiting)))]
        self._waiting_bytes -= len(indexes) * host.slot_bytes
        hashes = tuple(keys.hashes[index] for index in indexes)
        flights: list[Flight] = []
        with self._keeping_what_comes_before(wish, indexes[0]):
            try:
                await self._promotion.start(
                    wish.namespace,
                    BlockKeys(keys.lane, hashes, keys.parent, keys.position),
                    len(hashes),
                    flights,
                    kind=Kind.PREFETCH,
                    worth=host.worth(keys, indexes[0]),
                )
            finally:
                self._promotion.wish(flights)
                wish.flights = [each for each in wish.flights if not each.landed] + flights
                self._promotion.leave(flights)
        coming = {flight.block_hash for flight in flights}
        rows = host.find_many(keys.lane, hashes)
        if any(row == NONE and h not in coming for row, h in zip(rows, hashes, strict=True)):
            self._give_up(wish)  # there is no room, or a block is gone: what follows is of no use

    @contextmanager
    def _keeping_what_comes_before(self, wish: _Wish, index: int) -> Iterator[None]:
        """The beginning of a prefix makes no room for its end."""
        host, keys = wish.host, wish.keys
        before = keys.hashes[index - 1] if index else keys.parent
        row = host.residency.find(keys.lane, before) if before else NONE
        guarded = host.acquire([row] if row != NONE else [])
        try:
            yield
        finally:
            host.release(guarded)

    @property
    def wish_count(self) -> int:
        return len(self._wishes)


def _always() -> bool:
    return True

"""Blocks that an operator keeps from eviction for a time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kvtier.agent.moving.flight import Flight
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.sessions.grants import Guards, release_guards
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import WRITE_SLICE, slices
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.residency import NONE
from kvtier.errors import InvalidRequestError, NotFoundError, OverloadedError
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

_EVERYWHERE = frozenset(Tier)
_MAX_REASON_BYTES = 256


@dataclass(frozen=True)
class PinLimits:
    """Shares are of each tier's capacity: of all pins together, and of one namespace's."""

    max_share: float = 0.5
    max_namespace_share: float = 0.25
    max_seconds: float = 30 * 24 * 3600.0
    max_pins: int = 1024


@dataclass(eq=False, slots=True)
class Pin:
    """Blocks of one lane that must not be evicted, in HOST and on DISK, as far as they are there.

    `blocks` says of each in how many tiers it is kept; `rows` has them in the order of the prefix.
    """

    pin_id: str
    namespace: Namespace
    reason: str
    deadline: float = math.inf
    blocks: dict[bytes, int] = field(default_factory=dict)
    rows: dict[SizeClass, dict[int, None]] = field(default_factory=dict)

    @property
    def block_count(self) -> int:
        return len(self.blocks)

    @property
    def pinned_bytes(self) -> int:
        return sum(len(rows) * size_class.slot_bytes for size_class, rows in self.rows.items())


class Pins:
    """All pins of an agent. They belong to no session, and end by their time, with their last
    block, by `delete`, or with the agent.

    `clock` gives seconds and never runs backwards.
    """

    def __init__(
        self,
        tiers: Sequence[SlotTier],
        promotion: Promotion,
        limits: PinLimits,
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self._tiers = {tier.tier: tier for tier in tiers}
        self._promotion = promotion
        self._clock = clock
        self._pins: dict[str, Pin] = {}
        self._deadlines: list[tuple[float, int, Pin]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = math.inf
        self._creating = asyncio.Lock()

    def __iter__(self) -> Iterator[Pin]:
        """Those that are made, the oldest first."""
        return (pin for pin in self._pins.values() if pin.deadline < math.inf)

    def __len__(self) -> int:
        return len(self._pins)

    def remaining_seconds(self, pin: Pin) -> float:
        return max(0.0, pin.deadline - self._clock())

    async def create(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        *,
        ttl_seconds: float,
        reason: str = "",
        patience_seconds: float | None = None,
    ) -> Pin:
        """Pins what is cached of some keys, after bringing to HOST what is in slower tiers, as far
        as there is room. It waits for that at most `patience_seconds` (None: as long as it takes).

        What is nowhere is left out. Raises OverloadedError past a limit, NotFoundError if nothing
        is cached; nothing is pinned then.
        """
        self._check(ttl_seconds, reason)
        pin = Pin(secrets.token_hex(8), namespace, reason)
        guards: Guards = []
        flights: list[Flight] = []
        # One at a time: between the question whether there is room and its use, others wait.
        async with self._creating:
            if len(self) >= self.limits.max_pins:
                raise OverloadedError(f"{len(self)} pins: as many as pins.max_pins allows")
            try:
                await self._bring(namespace, keys, patience_seconds, guards, flights)
                for tier in self._tiers:
                    await self._check_room(namespace, tier, keys)
                for tier in self._tiers:
                    await self._fill(pin, namespace.tiers[tier][keys.lane.group], keys)
            except BaseException:
                self._release(pin)
                raise
            finally:
                self._promotion.leave(flights)
                release_guards(guards)
            if not pin.blocks:
                self._release(pin)
                raise NotFoundError("none of these blocks is cached")
            self._start(pin, ttl_seconds)
        return pin

    def _check(self, ttl_seconds: float, reason: str) -> None:
        longest = self.limits.max_seconds
        if not 0 < ttl_seconds <= longest:
            raise InvalidRequestError(
                f"ttl is {ttl_seconds:g} s; it must be above 0, and at most {longest:g} s "
                "(pins.max_seconds)"
            )
        if len(reason.encode()) > _MAX_REASON_BYTES:
            raise InvalidRequestError(f"reason is longer than {_MAX_REASON_BYTES} bytes")

    async def _bring(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        patience_seconds: float | None,
        guards: Guards,
        flights: list[Flight],
    ) -> None:
        """To HOST; what is there already is kept until the guards are released."""
        host, lane = namespace.groups[keys.lane.group], keys.lane
        async for part in slices(len(keys.hashes), WRITE_SLICE):
            rows = [row for row in host.find_many(lane, keys.hashes[part]) if row != NONE]
            guards.append((host, host.acquire(rows)))
        try:
            async with asyncio.timeout(patience_seconds):
                await self._promotion.learn(
                    namespace, lane, keys.hashes, _EVERYWHERE, is_prefix=False
                )
                room = self._room(namespace, Tier.HOST) // host.slot_bytes
                await self._promotion.start(namespace, keys, max(0, room), flights)
                if flights:
                    await asyncio.wait([flight.answer for flight in flights])
        except TimeoutError:
            pass  # what came too late is pinned where it is

    def _room(self, namespace: Namespace, tier: Tier) -> int:
        """Bytes that may still be pinned in a tier."""
        capacity = self._tiers[tier].space.capacity_bytes
        of_all = sum(each.pinned.size_bytes for each in self._tiers[tier].classes)
        own = sum(each.pinned.size_bytes for each in namespace.classes_of(tier))
        return min(
            int(self.limits.max_share * capacity) - of_all,
            int(self.limits.max_namespace_share * capacity) - own,
        )

    async def _check_room(self, namespace: Namespace, tier: Tier, keys: BlockKeys) -> None:
        size_class = namespace.tiers[tier][keys.lane.group]
        wanted = 0
        async for part in slices(len(keys.hashes), WRITE_SLICE):
            for row in set(size_class.find_many(keys.lane, keys.hashes[part])) - {NONE}:
                wanted += row not in size_class.pinned
        room = self._room(namespace, tier)
        if wanted * size_class.slot_bytes > room:
            raise OverloadedError(
                f"{wanted} blocks more take {wanted * size_class.slot_bytes} bytes of "
                f"{tier.name}, and {max(0, room)} may still be pinned there: pins.max_share is "
                f"{self.limits.max_share:g} of its capacity for all, pins.max_namespace_share "
                f"{self.limits.max_namespace_share:g} for one namespace; delete pins, or pin less"
            )

    async def _fill(self, pin: Pin, size_class: SizeClass, keys: BlockKeys) -> None:
        size_class.pinned.on_gone = self._gone
        mine = pin.rows.setdefault(size_class, {})
        self._pins[pin.pin_id] = pin
        async for part in slices(len(keys.hashes), WRITE_SLICE):
            rows = size_class.find_many(keys.lane, keys.hashes[part])
            new = [row for row in dict.fromkeys(rows) if row != NONE and row not in mine]
            size_class.pinned.add(new)
            mine.update(dict.fromkeys(new))
            for row in new:
                block_hash = size_class.residency.describe(row)[1]
                pin.blocks[block_hash] = pin.blocks.get(block_hash, 0) + 1

    def _start(self, pin: Pin, ttl_seconds: float) -> None:
        pin.deadline = self._clock() + ttl_seconds
        heapq.heappush(self._deadlines, (pin.deadline, next(self._numbers), pin))
        self._schedule()

    # Ending.

    def delete(self, pin_id: str) -> Pin:
        """Ends a pin. Raises NotFoundError."""
        pin = self._pins.get(pin_id)
        if pin is None or pin.deadline == math.inf:
            raise NotFoundError(f"no pin {pin_id!r}: it has ended, or there never was one")
        self._release(pin)
        return pin

    def _release(self, pin: Pin) -> None:
        self._pins.pop(pin.pin_id, None)
        rows, pin.rows = pin.rows, {}
        for size_class, each in rows.items():
            size_class.pinned.drop(list(each))

    def _gone(self, size_class: SizeClass, row: int) -> None:
        """A pinned block was evicted on request, or was damaged."""
        block_hash = size_class.residency.describe(row)[1]
        for pin in list(self._pins.values()):
            if row not in pin.rows.get(size_class, ()):
                continue
            del pin.rows[size_class][row]
            pin.blocks[block_hash] -= 1
            if not pin.blocks[block_hash]:
                del pin.blocks[block_hash]
            if not pin.blocks and pin.deadline < math.inf:
                del self._pins[pin.pin_id]

    def expire(self) -> None:
        """Ends what is past its time. Called when the next deadline is due."""
        self._alarm = math.inf
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            _, _, pin = heapq.heappop(self._deadlines)
            if pin.pin_id in self._pins:
                self._release(pin)
        self._schedule()

    def _schedule(self) -> None:
        """Sets the timer for the next deadline, unless it will ring before."""
        while self._deadlines and self._deadlines[0][2].pin_id not in self._pins:
            heapq.heappop(self._deadlines)
        if not self._deadlines or self._alarm <= self._deadlines[0][0]:
            return
        self.close()
        self._alarm = self._deadlines[0][0]
        delay = max(0.0, self._alarm - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self.expire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

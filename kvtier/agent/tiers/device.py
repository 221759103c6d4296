"""One device at work: its tier, its movers, and what comes to it from HOST."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtier.agent.moving.mover import Mover
from kvtier.agent.placing.placement import Placement
from kvtier.agent.sessions.grants import Granted, Grants
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.tiers.pinning import Pinning
from kvtier.agent.turns import WRITE_SLICE, slices
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.lease import Lease
from kvtier.core.residency import NONE
from kvtier.tiers.arena import HostExtent, SharedExtent
from kvtier.tiers.device import Accelerator, DeviceExtent, DeviceTier, cell_pairs
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import Counters, SizeClass

log = logging.getLogger(__name__)

#: Two batches at a time: the second begins while a mover waits for the first.
_MOVERS = 2
#: Of HOST, and at most half of it, kept in use by copies under way; what is beyond that comes with
#: a later load.
_MAX_IN_FLIGHT_BYTES = 512 << 20
_WHOLE = 1 << 62


@dataclass(frozen=True)
class DeviceOptions:
    """What a device keeps: `capacity_bytes` of its memory at most."""

    capacity_bytes: int
    policy: str = "lru"
    admission: str = "always"


@dataclass(frozen=True)
class Handle:
    """How one more process opens an extent, or why it cannot."""

    descriptors: list[int] = field(default_factory=list)
    fields: list[str | int] = field(default_factory=list)
    failure: str = ""


class Device:
    """Copies of blocks of HOST, for the workers on this device.

    A block that a worker loads from HOST comes to the worker's device, if the device's policy
    admits it, in place of what is worth less there. It stays in HOST: when it leaves HOST, it
    leaves the device too, so that giving up a copy costs nothing.
    """

    tier = Tier.GPU

    def __init__(
        self,
        accelerator: Accelerator,
        number: int,
        options: DeviceOptions,
        host: HostTier,
        pinning: Pinning,
    ) -> None:
        self.number = number
        self.accelerator = accelerator
        self.slots = DeviceTier(
            accelerator,
            number,
            options.capacity_bytes,
            policy=options.policy,
            admission=options.admission,
            ages=host.ages,
        )
        self.mover = Mover(_MOVERS)
        #: Makes handles: who waits for one does not wait for copies.
        self._opener = Mover(1)
        self.placement = Placement(
            self.slots,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: _WHOLE,  # what is missing shows when it is allocated
            step_bytes=_WHOLE,
        )
        self.slots.arena.free = lambda extent: self._spawn_free(extent)
        self.error_count = 0
        self._host = host
        self._pinning = pinning
        self._coming: set[tuple[SizeClass, int]] = set()
        self._in_flight_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self.accelerator.name

    def class_of(self, namespace: Namespace, group: int) -> SizeClass:
        return namespace.devices[self.number - 1][group]

    def counters(self, namespace: Namespace, group: int) -> Counters:
        return self.class_of(namespace, group).counters

    # Serving.

    def find(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], rows: Sequence[int]
    ) -> dict[int, int]:
        """Of blocks that HOST has in `rows` (-1: it has not), those that are here: rows by index;
        they count as used."""
        size_class = self.class_of(namespace, lane.group)
        if not len(size_class.residency):
            return {}
        mine = size_class.find_many(lane, hashes)
        found = {
            index: here
            for index, (here, row) in enumerate(zip(mine, rows, strict=True))
            if here != NONE and row != NONE
        }
        size_class.touch(list(found.values()))
        return found

    def lease(
        self,
        grants: Grants,
        lease: Lease,
        namespace: Namespace,
        lane: Lane,
        found: Mapping[int, int],
    ) -> None:
        """Adds what `find` has found to a lease."""
        rows = list(found.values())
        size_class = self.class_of(namespace, lane.group)
        grants.refer(size_class, lease, lane, rows, Tier.GPU, self.number)

    def answer(
        self, granted: Granted, start: int, namespace: Namespace, group: int, found: dict[int, int]
    ) -> None:
        """Puts slots of the device where HOST's stood, from entry `start` on."""
        size_class = self.class_of(namespace, group)
        own = Granted(granted.lease)
        own.add(size_class, [BlockStatus.OK] * len(found), size_class.slots_of(found.values()))
        for index, extent, slot, generation in zip(
            found, own.extents, own.slots, own.generations, strict=True
        ):
            granted.extents[start + index] = extent
            granted.slots[start + index] = slot
            granted.generations[start + index] = generation

    # Promotion.

    def promote(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        rows: Sequence[int],
        found: Mapping[int, int],
    ) -> None:
        """A worker on this device loads these blocks: begins to bring those that are admitted and
        not `found` here, the leading ones. `rows` are HOST's."""
        host = namespace.groups[keys.lane.group]
        size_class = self.class_of(namespace, keys.lane.group)
        coming = self._coming
        wanted = [
            index
            for index, row in enumerate(rows)
            if row != NONE and index not in found and (host, row) not in coming
        ]
        most_bytes = min(_MAX_IN_FLIGHT_BYTES, self._host.space.capacity_bytes // 2)
        room = (most_bytes - self._in_flight_bytes) // host.slot_bytes
        wanted = wanted[: max(0, min(room, size_class.admitted(keys, wanted)))]
        if not wanted:
            return
        worth = size_class.worth(keys, wanted[0])
        chosen = [rows[index] for index in wanted]
        guards = size_class.acquire(found.values())  # the end makes no room by the beginning
        sources = host.acquire(chosen)
        coming.update((host, row) for row in chosen)
        self._in_flight_bytes += len(chosen) * host.slot_bytes

        async def bring() -> None:
            try:
                await self._bring(host, size_class, chosen, list(sources), worth)
            finally:
                coming.difference_update((host, row) for row in chosen)
                self._in_flight_bytes -= len(chosen) * host.slot_bytes
                host.release(sources)
                size_class.release(guards)

        self._spawn(bring())

    async def _bring(
        self,
        host: SizeClass,
        size_class: SizeClass,
        rows: list[int],
        sources: list[int],
        worth: float,
    ) -> None:
        """Copies as many of the leading blocks as there is room for."""
        generations = [host.table.generations[slot] for slot in sources]
        await self.placement.make_room(size_class, len(rows), worth)
        targets = size_class.take(len(rows), worth)
        try:
            if targets:
                await self.mover.run(self._copy, host, sources[: len(targets)], size_class, targets)
                async for part in slices(len(targets), WRITE_SLICE):
                    for index in range(part.start, part.stop):
                        # What has left HOST meanwhile does not come here either.
                        if host.is_at(rows[index], sources[index], generations[index]):
                            self._arrived(host, rows[index], size_class, targets[index])
        except OSError as error:
            self.error_count += 1
            log.error("%s: blocks cannot be copied to it: %s", self.name, error)
        finally:
            size_class.release(targets)

    def _copy(
        self, host: SizeClass, sources: list[int], size_class: SizeClass, targets: list[int]
    ) -> None:
        """By a mover, which waits until the bytes are there."""
        origins = {host.table.extent_of(slot) for slot in sources}
        self._pinning.pin(
            self.accelerator, [each for each in origins if isinstance(each, HostExtent)]
        )
        moves = list(zip(sources, targets, strict=True))
        self.accelerator.copy(cell_pairs(host.table, size_class.table, moves)).wait()

    def _arrived(self, host: SizeClass, row: int, size_class: SizeClass, slot: int) -> None:
        key, stored_at = host.residency.key(row), host.lifetimes.stored_at(row)
        if size_class.commit(*key, slot, stored_at=stored_at) is BlockStatus.OK:
            size_class.counters.stored += 1
            host.counters.promoted += 1

    # Hand-over.

    def hand_over(
        self,
        extents: Sequence[DeviceExtent],
        holder: Hashable,
        give: Callable[[list[tuple[DeviceExtent, Handle]]], None],
    ) -> None:
        """Calls `give` with a handle of each extent, later: to make one may wait for the device.

        The holder has them from now on; their descriptors are valid during that call.
        """
        guard = object()  # the holder may go meanwhile, and the extents with it
        for extent in extents:
            extent.holders |= {holder, guard}

        async def make() -> None:
            try:
                handles = await self._opener.run(lambda: [_handle_of(each) for each in extents])
                give(list(zip(extents, handles, strict=True)))
            finally:
                self.slots.arena.forget_holder(guard)

        self._spawn(make())

    # The end.

    def forget(self, namespace: Namespace, lane: Lane, block_hash: bytes, cause: Cause) -> None:
        """The block leaves HOST."""
        size_class = self.class_of(namespace, lane.group)
        row = size_class.residency.find(lane, block_hash)
        if row != NONE:
            size_class.forget(row, cause)

    def _spawn_free(self, extent: SharedExtent) -> None:
        async def free() -> None:
            await self.mover.run(extent.close)
            self.slots.arena.freed(extent)

        self._spawn(free())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("%s: background work failed", self.name, exc_info=task.exception())

    async def close(self) -> None:
        """Waits for copies under way: they write to memory that goes now."""
        await self.placement.close()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self.mover.close()
        self._opener.close()
        self.slots.close()
        self.accelerator.close()


def _handle_of(extent: DeviceExtent) -> Handle:
    """By a mover, while somebody holds the extent."""
    assert extent.memory is not None
    try:
        return Handle(*extent.memory.handle())
    except OSError as error:
        log.error("%s: its memory cannot be shared: %s", extent.accelerator.name, error)
        return Handle(failure=str(error))

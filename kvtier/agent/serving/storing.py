"""Reserve and commit."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import xxhash

from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.parents import Parents
from kvtier.agent.sessions.grants import Granted, Grants, Guards, release_guards
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.turns import READ_SLICE, WRITE_SLICE, data_slices
from kvtier.core.block import BlockKeys, BlockStatus, Lane
from kvtier.core.cause import Cause
from kvtier.core.lease import Lease, LeaseKind, LeasePart
from kvtier.core.policies.base import ALWAYS, NEVER
from kvtier.core.residency import NONE
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of
from kvtier.tiers.size_class import SizeClass

DIGEST_BYTES = 16
_NOTHING = np.empty(0, dtype=np.uint8)


#: One key of a reservation: its part, and its index there.
_Reserved = tuple[LeasePart, int]

OnRefused = Callable[[SizeClass, Lane, Sequence[bytes], Cause], None]


class Storing:
    """The writing verbs, in slices as in `loading`. A slot becomes a block only at commit."""

    def __init__(
        self,
        grants: Grants,
        placement: Placement,
        mover: Mover,
        promotion: Promotion | None = None,
    ) -> None:
        self.on_stored: list[Callable[[SizeClass, Sequence[int]], None]] = []
        #: Whether a slower tier would take a block of HOST that is to be stored.
        self.takers: list[Callable[[SizeClass, BlockKeys, int], bool]] = []
        #: Is told of blocks that got no slot, and why.
        self.on_refused: OnRefused | None = None
        self._grants = grants
        self._placement = placement
        self._mover = mover
        self._parents = Parents(promotion)

    async def reserve(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        *,
        ttl_seconds: float = 0.0,
        patience_seconds: float | None = None,
        breakpoints: Sequence[int] = (),
    ) -> Granted:
        """Slots for what is not cached yet, as many as there is room for, from the first key on.

        It waits for room to be made for at most `patience_seconds` (None: as long as that takes),
        never for a lease to end. What is here already of a sequence is not evicted to make room for
        the rest of it. What continues a block that is nowhere is refused (see `needs_parents`).
        `breakpoints` are indexes of keys, counted over all entries, whose blocks end a part that
        many sequences share: policies hear of those that are here now, and of the others when they
        are committed.
        """
        ends, first, started = sorted(set(breakpoints)), 0, self._grants.leases.now()
        guards: Guards = []
        orphans = self._parents.orphans(session.namespace, entries)
        try:
            rooted = [keys for index, keys in enumerate(entries) if index not in orphans]
            wanted = await self._guard(session, rooted, guards)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_seconds):
                    for size_class, (count, worth) in wanted.items():
                        await self._make_room(session, size_class, count, worth)
            with self._grants.granting(LeaseKind.RESERVATION, session, ttl_seconds) as lease:
                granted, lease.begun_at = Granted(lease), started
                for index, keys in enumerate(entries):
                    after = first + len(keys.hashes)
                    mine = ends[bisect_left(ends, first) : bisect_left(ends, after)]
                    marked = frozenset(each - first for each in mine)
                    await self._reserve_entry(
                        session, keys, granted, marked, is_orphan=index in orphans
                    )
                    first = after
        finally:
            release_guards(guards)
        return granted

    async def _guard(
        self, session: Session, entries: Sequence[BlockKeys], guards: Guards
    ) -> dict[SizeClass, tuple[int, float]]:
        """Keeps what is here of the sequences; how many slots the rest needs, and what it is worth,
        per size class."""
        wanted: dict[SizeClass, tuple[int, float]] = {}
        for keys in entries:
            size_class = session.namespace.groups[keys.lane.group]
            async for part in data_slices(len(keys.hashes), READ_SLICE):
                rows = size_class.find_many(keys.lane, keys.hashes[part])
                if missing := rows.count(-1):
                    count, worth = wanted.get(size_class, (0, NEVER))
                    own = self._worth(size_class, keys, part.start + rows.index(-1))
                    wanted[size_class] = count + missing, max(worth, own)
                if part.start == 0 and keys.parent:
                    rows.insert(0, size_class.residency.find(keys.lane, keys.parent))
                present = [row for row in rows if row >= 0]
                size_class.policy.keep(present)
                guards.append((size_class, size_class.acquire(present)))
        return wanted

    def _worth(self, size_class: SizeClass, keys: BlockKeys, index: int) -> float:
        """What may make way for a block. HOST is the only way to the slower tiers: what one of them
        would keep comes in, whatever it is worth here; it is the first to go again."""
        worth = size_class.worth(keys, index)
        if NEVER < worth < ALWAYS and any(each(size_class, keys, index) for each in self.takers):
            return ALWAYS
        return worth

    async def _make_room(
        self, session: Session, size_class: SizeClass, wanted: int, worth: float
    ) -> None:
        """Holds yield, the oldest first: to the session's share, and to the arena."""
        while self._grants.room(session, size_class) < wanted:
            if not self._grants.drop_oldest_hold(session.namespace, session):
                break
        wanted = min(wanted, self._grants.room(session, size_class))
        await self._placement.make_room(size_class, wanted, worth)
        while size_class.free_slots < wanted and size_class.policy.victim() == NONE:
            if not self._grants.drop_oldest_hold(session.namespace):
                break
            await self._placement.make_room(size_class, wanted, worth)

    async def _reserve_entry(
        self,
        session: Session,
        keys: BlockKeys,
        granted: Granted,
        breakpoints: frozenset[int],
        *,
        is_orphan: bool,
    ) -> None:
        size_class = session.namespace.groups[keys.lane.group]
        reserved = LeasePart(
            keys.lane, array("q"), size_class.slot_bytes, keys, breakpoints=breakpoints
        )
        room = self._grants.room(session, size_class)
        self._grants.leases.extend(granted.lease, reserved)
        cause: Cause | None = None
        async for part in data_slices(len(keys.hashes), WRITE_SLICE):
            rows = size_class.find_many(keys.lane, keys.hashes[part])
            absent = [part.start + place for place, row in enumerate(rows) if row < 0]
            missing = len(absent)
            admitted = 0 if is_orphan else size_class.admitted(keys, absent)
            for index in breakpoints.intersection(range(part.start, part.stop)):
                _mark(session.namespace, keys, index)
            self._grants.require_active(granted.lease)
            worth = self._worth(size_class, keys, absent[0]) if missing else NEVER
            wanted = min(admitted, room)
            slots = size_class.take(wanted, worth)
            if slots:
                end = keys.hashes[absent[len(slots) - 1]]
                self._parents.reserved(session.namespace, keys.lane, end)
            if len(slots) < missing:
                cause = cause or self._why_refused(size_class, len(slots), admitted, room)
                size_class.counters.causes[cause] += missing - len(slots)
                if self.on_refused is not None:
                    away = [keys.hashes[index] for index in absent[len(slots) :]]
                    self.on_refused(size_class, keys.lane, away, cause)
            room = room - len(slots) if len(slots) == missing else 0
            is_worth_less = len(slots) < wanted and size_class.policy.victim() != NONE
            unadmitted = missing - (len(slots) if is_worth_less else admitted)
            size_class.counters.unadmitted += unadmitted
            size_class.counters.refused += missing - unadmitted - len(slots)
            self._grants.leases.add_slots(
                granted.lease, reserved, _describe(size_class, granted, rows, slots)
            )
        self._placement.grow_ahead(size_class)

    def _why_refused(self, size_class: SizeClass, taken: int, admitted: int, room: int) -> Cause:
        """Why no more than so many were taken."""
        if taken == admitted:
            return Cause.ADMISSION
        if taken == room:
            return Cause.SESSION_SHARE
        if size_class.policy.victim() != NONE:
            return Cause.WORTH_LESS
        holding = self._placement.tier.holding(size_class.table.namespace_id)
        return Cause.NO_ROOM if holding.growth_bytes else Cause.QUOTA

    async def commit(
        self,
        session: Session,
        reservation_id: int,
        indexes: Sequence[int] = (),
        digests: Sequence[bytes] = (),
    ) -> list[BlockStatus]:
        """Makes reserved slots blocks; one status per index (per reserved key if none is named).

        A reservation that has ended answers EXPIRED for each index, once if none is named. Slots
        whose status is another one are the agent's again. Raises InvalidRequestError for indexes
        beyond the reservation, and for digests that are not one per answer.
        """
        leases = self._grants.leases
        lease = leases.find(session.session_id, reservation_id)
        if lease is None or lease.kind is not LeaseKind.RESERVATION:
            return [BlockStatus.EXPIRED] * (len(indexes) or 1)
        chosen = _chosen(lease, indexes)
        genuine = await self._verify(session.namespace, chosen, digests)
        statuses: list[BlockStatus] = []
        done: defaultdict[SizeClass, list[int]] = defaultdict(list)
        stored: defaultdict[SizeClass, list[int]] = defaultdict(list)
        try:
            async for piece in data_slices(len(chosen), WRITE_SLICE):
                is_active = leases.is_active(lease)
                for (part, index), is_genuine in zip(chosen[piece], genuine[piece], strict=True):
                    size_class = session.namespace.groups[part.lane.group]
                    if part.slots[index] < 0 or not is_active:
                        statuses.append(_without_slot(size_class, part, index))
                        continue
                    slot = leases.take_slot(lease, part, index)
                    done[size_class].append(slot)
                    status = (
                        _commit_slot(session.namespace, part, index, slot)
                        if is_genuine
                        else BlockStatus.DIGEST_MISMATCH
                    )
                    if status is BlockStatus.OK:
                        assert part.keys is not None
                        arrived = part.keys.hashes[index]
                        self._parents.arrived(session.namespace, part.lane, arrived)
                        size_class.counters.stored += 1
                        stored[size_class].append(slot)
                    statuses.append(status)
        finally:
            for size_class, slots in stored.items():
                for on_stored in self.on_stored:
                    on_stored(size_class, slots)
            for size_class, slots in done.items():
                size_class.release(slots)
        usage = session.namespace.usage
        usage.mismatched_blocks += statuses.count(BlockStatus.DIGEST_MISMATCH)
        if not lease.size_bytes and leases.drop(lease):
            usage.stores.observe(leases.now() - lease.begun_at)
        return statuses

    async def _verify(
        self, namespace: Namespace, chosen: list[_Reserved], digests: Sequence[bytes]
    ) -> list[bool]:
        """Whether each slot's bytes match its digest; a mover reads them."""
        if not digests:
            return [True] * len(chosen)
        if len(digests) != len(chosen):
            raise InvalidRequestError(
                f"digests: {len(digests)} for {len(chosen)} blocks; send one for each, or none"
            )
        cells = []
        for part, index in chosen:
            size_class = namespace.groups[part.lane.group]
            slot = part.slots[index]
            cell = cell_of(size_class.table, slot) if slot >= 0 else _NOTHING
            cells.append(cell[: namespace.spec.block_bytes[part.lane.group]])
        return await self._mover.run(_match_digests, cells, list(digests))


def _mark(namespace: Namespace, keys: BlockKeys, index: int) -> None:
    """Tells the policies of all tiers that have the block."""
    for size_classes in namespace.tiers.values():
        size_class = size_classes[keys.lane.group]
        row = size_class.find(keys.lane, keys.hashes[index])
        if row != NONE:
            size_class.mark(row)


def _describe(
    size_class: SizeClass, granted: Granted, rows: list[int], slots: list[int]
) -> list[int]:
    """Writes the answer for some keys; returns the slot of each, -1 where it got none."""
    remaining = iter(slots)
    reserved = [next(remaining, -1) if row < 0 else -1 for row in rows]
    without = {True: BlockStatus.PRESENT, False: BlockStatus.REFUSED}
    statuses = [
        BlockStatus.OK if slot >= 0 else without[row >= 0]
        for row, slot in zip(rows, reserved, strict=True)
    ]
    granted.add(size_class, statuses, reserved)
    return reserved


def _chosen(lease: Lease, indexes: Sequence[int]) -> list[_Reserved]:
    """The keys of a reservation that a commit means."""
    keys = [(part, index) for part in lease.parts for index in range(len(part.slots))]
    if not indexes:
        return [(part, index) for part, index in keys if part.slots[index] >= 0]
    if max(indexes) >= len(keys):
        raise InvalidRequestError(
            f"indexes: {max(indexes)} is beyond the reservation, which has {len(keys)} keys"
        )
    return [keys[index] for index in indexes]


def _commit_slot(namespace: Namespace, part: LeasePart, index: int, slot: int) -> BlockStatus:
    keys = part.keys
    assert keys is not None
    size_class = namespace.groups[keys.lane.group]
    parent = keys.hashes[index - 1] if index else keys.parent
    status = size_class.commit(keys.lane, keys.hashes[index], parent, keys.position + index, slot)
    if index in part.breakpoints:
        _mark(namespace, keys, index)
    return status


def _without_slot(size_class: SizeClass, part: LeasePart, index: int) -> BlockStatus:
    """A key whose slot is no longer the worker's: committed earlier, by it or another, or not."""
    assert part.keys is not None
    row = size_class.find(part.lane, part.keys.hashes[index])
    return BlockStatus.EXPIRED if row < 0 else BlockStatus.PRESENT


def _match_digests(cells: list[ByteArray], digests: list[bytes]) -> list[bool]:
    return [
        xxhash.xxh3_128_digest(cell.data) == digest
        for cell, digest in zip(cells, digests, strict=True)
    ]

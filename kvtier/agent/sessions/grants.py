"""Leases over slots: granting, bounding, ending."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.sessions.sessions import Session
from kvtier.core.block import BlockStatus, Lane, Tier
from kvtier.core.lease import Lease, LeaseKind, LeasePart, LeaseTable
from kvtier.core.slots import SLOTS_PER_PAGE
from kvtier.errors import SessionLostError
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

#: References that keep blocks from eviction for the length of one call.
Guards = list[tuple[SizeClass, "array[int]"]]


@dataclass(slots=True)
class Granted:
    """Statuses of a batch and, where OK, where to find the slot; one entry per key."""

    lease: Lease
    statuses: list[int] = field(default_factory=list)
    extents: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def add(
        self, size_class: SizeClass, statuses: Sequence[BlockStatus], slots: Sequence[int]
    ) -> None:
        """Appends entries; a slot is -1 where the status is not OK."""
        pages, generations = size_class.table.extents, size_class.table.generations
        extents = [pages[slot // SLOTS_PER_PAGE] if slot >= 0 else None for slot in slots]
        self.statuses += statuses
        self.extents += [each.extent_id if each else 0 for each in extents]
        self.slots += [
            slot - each.base if each else 0 for slot, each in zip(slots, extents, strict=True)
        ]
        self.generations += [generations[slot] if slot >= 0 else 0 for slot in slots]


@dataclass(frozen=True)
class LeaseLimits:
    """Times in seconds; `max_share` is the part of HOST that one session may keep from reuse."""

    default_seconds: float = 10.0
    max_seconds: float = 60.0
    max_hold_seconds: float = 10.0
    max_share: float = 0.5


class Grants:
    """Ties leases to slots: whatever a lease lists has a reference, until it is released here."""

    def __init__(
        self,
        tiers: Sequence[SlotTier],
        leases: LeaseTable,
        limits: LeaseLimits,
        devices: Sequence[SlotTier] = (),
    ) -> None:
        self.leases = leases
        self.limits = limits
        self._tiers = {tier.tier: tier for tier in tiers}
        self._devices = devices
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = math.inf

    @contextmanager
    def granting(self, kind: LeaseKind, session: Session, wanted_seconds: float) -> Iterator[Lease]:
        """A lease to be filled in the block; it lasts as wanted, within limits (0: the default).

        Its time begins at the block's end. It is released if that fails or adds no slot. It may
        end before, with its session (`LeaseTable.is_active`). Raises SessionLostError if that has
        ended already.
        """
        if not session.attachment.connected:
            raise SessionLostError("the worker's attach connection has ended; attach again")
        lease = self.leases.grant(kind, session.session_id, session.namespace.namespace_id)
        try:
            yield lease
        except BaseException:
            self.release(lease)
            raise
        if not lease.size_bytes:
            self.release(lease)
        elif self.leases.is_active(lease):
            self.leases.start(lease, self._seconds(kind, wanted_seconds))
            self._schedule()

    def _seconds(self, kind: LeaseKind, wanted_seconds: float) -> float:
        limits = self.limits
        longest = limits.max_hold_seconds if kind is LeaseKind.HOLD else limits.max_seconds
        return min(wanted_seconds or limits.default_seconds, longest)

    def room(self, session: Session, size_class: SizeClass) -> int:
        """Slots that a session may still lease, hold or reserve."""
        limit = int(self.limits.max_share * self._tiers[Tier.HOST].space.capacity_bytes)
        left = limit - self.leases.session_bytes(session.session_id)
        return max(0, left // size_class.slot_bytes)

    def refer(
        self,
        size_class: SizeClass,
        lease: Lease,
        lane: Lane,
        rows: list[int],
        tier: Tier = Tier.HOST,
        device: int = 0,
    ) -> int:
        """Adds blocks to a lease; the caller keeps within `room`. Returns how many.

        Raises SessionLostError if the lease has ended meanwhile.
        """
        self.require_active(lease)
        if rows:
            slots = size_class.acquire(rows)
            part = LeasePart(lane, slots, size_class.slot_bytes, tier=tier, device=device)
            self.leases.extend(lease, part)
        return len(rows)

    def require_active(self, lease: Lease) -> None:
        """Raises SessionLostError if a lease ended while it was being filled."""
        if not self.leases.is_active(lease):
            raise SessionLostError("the session ended during the call; attach again")

    def release(self, lease: Lease) -> None:
        """Ends a lease of any kind and gives its slots back."""
        if self.leases.drop(lease):
            self.release_slots(lease)

    def revoke(self, lease: Lease) -> None:
        """Ends a lease against its worker's will: a reservation's slots go into quarantine."""
        if self.leases.end(lease):
            self.release_slots(lease)

    def release_by_id(self, session: Session, lease_id: int) -> None:
        """Ends a lease of this session, or a hold of its namespace; unknown ids have ended."""
        lease = self.leases.find(session.session_id, lease_id)
        lease = lease or self.leases.hold(session.namespace.namespace_id, lease_id)
        if lease is not None:
            self.release(lease)

    def renew(
        self, session: Session, lease_ids: Sequence[int], wanted_seconds: float
    ) -> list[Lease]:
        """Extends these leases and reservations (none: all of the session); those that live."""
        if lease_ids:
            found = [self.leases.find(session.session_id, lease_id) for lease_id in lease_ids]
        else:
            found = list(self.leases.of_session(session.session_id))
        alive = [
            lease
            for lease in found
            if lease and lease.kind in (LeaseKind.LOAD, LeaseKind.RESERVATION)
        ]
        for lease in alive:
            self.leases.renew(lease, self._seconds(lease.kind, wanted_seconds))
        return alive

    def release_slots(self, lease: Lease) -> None:
        """Gives back the slots of a lease that the table has dropped."""
        for part in lease.parts:
            size_class = self._class_of(lease.namespace_id, part)
            size_class.release([slot for slot in part.slots if slot >= 0])

    def take_over(self, namespace: Namespace, hold_id: int, lanes: Collection[Lane]) -> Guards:
        """Turns the part of a hold that a load is about to lease into guards of the caller."""
        hold = self.leases.hold(namespace.namespace_id, hold_id)
        if hold is None:
            return []
        parts = self.leases.take_lanes(hold, lanes)
        if not hold.parts:
            self.leases.drop(hold)
        return [(self._class_of(namespace.namespace_id, part), part.slots) for part in parts]

    def _class_of(self, namespace_id: int, part: LeasePart) -> SizeClass:
        tier = self._devices[part.device - 1] if part.device else self._tiers[part.tier]
        return tier.size_class(namespace_id, part.slot_bytes)

    def drop_oldest_hold(self, namespace: Namespace, session: Session | None = None) -> bool:
        """Makes the oldest hold of a namespace, or of one session, yield; False if none."""
        session_id = session.session_id if session else None
        hold = self.leases.oldest_hold(namespace.namespace_id, session_id)
        if hold is None:
            return False
        self.release(hold)
        return True

    def expire(self) -> None:
        """Ends what is past its deadline. Called when the next deadline is due."""
        self._alarm = math.inf
        for lease in self.leases.expire():
            self.release_slots(lease)
        self._schedule()

    def _schedule(self) -> None:
        """Sets the timer for the next deadline, unless it will ring before."""
        deadline = self.leases.next_deadline()
        if deadline is None or self._alarm <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._alarm = deadline
        delay = max(0.0, deadline - self.leases.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self.expire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def release_guards(guards: Iterable[tuple[SizeClass, array[int]]]) -> None:
    for size_class, slots in guards:
        size_class.release(slots)

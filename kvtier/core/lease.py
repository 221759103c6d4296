"""Promises not to reuse slots: leases, holds, reservations, and what is left of broken ones."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvtier.core.block import BlockKeys, Lane, Tier


class LeaseKind(Enum):
    """Why slots must not be reused."""

    LOAD = "load"
    HOLD = "hold"
    RESERVATION = "reservation"
    #: An ended reservation whose worker may still write.
    QUARANTINE = "quarantine"


@dataclass(slots=True)
class LeasePart:
    """Slots of one lane, in the order of the prefix.

    A reservation's part keeps its keys, and lists -1 for a key without a slot. `breakpoints` are
    the indexes of keys that end a part which many share.
    """

    lane: Lane
    slots: array[int]
    slot_bytes: int
    keys: BlockKeys | None = None
    tier: Tier = Tier.HOST
    #: Of GPU: the number of the device.
    device: int = 0
    breakpoints: frozenset[int] = frozenset()


@dataclass(slots=True)
class Lease:
    """Slots promised to a session."""

    lease_id: int
    kind: LeaseKind
    session_id: int
    namespace_id: int
    deadline: float = math.inf
    parts: list[LeasePart] = field(default_factory=list)
    size_bytes: int = 0
    #: When the call began that asked for it, on the table's clock.
    begun_at: float = 0.0


class LeaseTable:
    """All leases of an agent, by id, by session and by deadline. Pure bookkeeping.

    A lease past its deadline is ended by `expire`: loads and holds are returned to be released,
    reservations turn into quarantine. `clock` gives seconds and never runs backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        self._by_session: defaultdict[int, dict[int, Lease]] = defaultdict(dict)
        self._session_bytes: Counter[int] = Counter()
        self._holds: dict[int, Lease] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def grant(self, kind: LeaseKind, session_id: int, namespace_id: int) -> Lease:
        """A lease without slots, and without a deadline until `start`."""
        lease = Lease(self._next_id, kind, session_id, namespace_id, begun_at=self._clock())
        self._next_id += 1
        self._leases[lease.lease_id] = lease
        self._by_session[session_id][lease.lease_id] = lease
        if kind is LeaseKind.HOLD:
            self._holds[lease.lease_id] = lease
        return lease

    def start(self, lease: Lease, ttl_seconds: float) -> None:
        """From now on it lasts so long."""
        lease.deadline = self._clock() + ttl_seconds
        heapq.heappush(self._deadlines, (lease.deadline, lease.lease_id))

    def is_active(self, lease: Lease) -> bool:
        """Whether slots may be added to it or committed: not dropped, not in quarantine."""
        return lease.lease_id in self._leases and lease.kind is not LeaseKind.QUARANTINE

    def extend(self, lease: Lease, part: LeasePart) -> None:
        """Adds a part to an active lease; each of its slots carries a reference."""
        lease.parts.append(part)
        self._count(lease, len(part.slots) * part.slot_bytes)

    def add_slots(self, lease: Lease, part: LeasePart, slots: Sequence[int]) -> None:
        """Adds slots at the end of a part; -1 stands for none."""
        part.slots.extend(slots)
        self._count(lease, sum(1 for slot in slots if slot >= 0) * part.slot_bytes)

    def take_slot(self, lease: Lease, part: LeasePart, index: int) -> int:
        """Removes and returns one slot; the caller has its reference now."""
        slot = part.slots[index]
        part.slots[index] = -1
        self._count(lease, -part.slot_bytes)
        return slot

    def take_lanes(self, lease: Lease, lanes: Collection[Lane]) -> list[LeasePart]:
        """Removes and returns the parts of some lanes; the caller has their references now."""
        taken = [part for part in lease.parts if part.lane in lanes]
        lease.parts = [part for part in lease.parts if part.lane not in lanes]
        self._count(lease, -sum(len(part.slots) * part.slot_bytes for part in taken))
        return taken

    def _count(self, lease: Lease, size_bytes: int) -> None:
        lease.size_bytes += size_bytes
        self._session_bytes[lease.session_id] += size_bytes

    def find(self, session_id: int, lease_id: int) -> Lease | None:
        """A lease of this session; other sessions' are not found."""
        lease = self._leases.get(lease_id)
        return lease if lease and lease.session_id == session_id else None

    def hold(self, namespace_id: int, hold_id: int) -> Lease | None:
        """A hold of this namespace, whoever made it."""
        lease = self._holds.get(hold_id)
        return lease if lease and lease.namespace_id == namespace_id else None

    def oldest_hold(self, namespace_id: int, session_id: int | None = None) -> Lease | None:
        """The hold of a namespace, or of one of its sessions, that yields first."""
        for hold in self._holds.values():
            if hold.namespace_id == namespace_id and session_id in (None, hold.session_id):
                return hold
        return None

    def of_session(self, session_id: int) -> list[Lease]:
        return list(self._by_session.get(session_id, {}).values())

    def session_bytes(self, session_id: int) -> int:
        """Leased, held, reserved and quarantined."""
        return self._session_bytes[session_id]

    def renew(self, lease: Lease, ttl_seconds: float) -> None:
        """Moves the deadline, never to an earlier time. Quarantine has none."""
        if lease.kind is not LeaseKind.QUARANTINE:
            lease.deadline = max(lease.deadline, self._clock() + ttl_seconds)

    def now(self) -> float:
        return self._clock()

    def remaining_seconds(self, lease: Lease) -> float:
        return lease.deadline - self._clock()

    def drop(self, lease: Lease) -> bool:
        """Forgets a lease; False if that happened before. The caller releases its slots."""
        if self._leases.pop(lease.lease_id, None) is None:
            return False
        mine = self._by_session[lease.session_id]
        del mine[lease.lease_id]
        self._session_bytes[lease.session_id] -= lease.size_bytes
        if not mine:
            del self._by_session[lease.session_id], self._session_bytes[lease.session_id]
        self._holds.pop(lease.lease_id, None)
        return True

    def expire(self) -> list[Lease]:
        """Ends what is past its deadline; returns the leases and holds that it dropped."""
        now, ended = self._clock(), []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            lease = self._leases.get(lease_id)
            if lease is None or not self.is_active(lease):
                continue
            if lease.deadline > now:
                heapq.heappush(self._deadlines, (lease.deadline, lease_id))
            elif self.end(lease):
                ended.append(lease)
        return ended

    def end(self, lease: Lease) -> bool:
        """Ends a lease early. True if its slots are to be released, False if quarantined."""
        if lease.kind in (LeaseKind.RESERVATION, LeaseKind.QUARANTINE):
            lease.kind = LeaseKind.QUARANTINE
            return False
        return self.drop(lease)

    def next_deadline(self) -> float | None:
        """When `expire` is due next, or earlier."""
        return self._deadlines[0][0] if self._deadlines else None

"""Behaviour of `kvtier.core.lease`."""

from __future__ import annotations

from array import array

from kvtier.core.block import Lane
from kvtier.core.lease import Lease, LeaseKind, LeasePart, LeaseTable
from kvtier.testing import ManualClock

LOAD, HOLD = LeaseKind.LOAD, LeaseKind.HOLD
RESERVATION, QUARANTINE = LeaseKind.RESERVATION, LeaseKind.QUARANTINE
SLOT_BYTES = 4096


class Books:
    """A table under a clock that tests move."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.table = LeaseTable(self.clock)

    def grant(
        self,
        kind: LeaseKind = LOAD,
        *,
        slots: tuple[int, ...] = (1, 2),
        session: int = 1,
        namespace: int = 1,
        seconds: float = 10.0,
        lane: Lane = Lane(),  # noqa: B008
    ) -> Lease:
        lease = self.table.grant(kind, session, namespace)
        self.table.extend(lease, LeasePart(lane, array("q", slots), SLOT_BYTES))
        self.table.start(lease, seconds)
        return lease


def test_a_lease_is_found_by_its_own_session_only() -> None:
    books = Books()
    lease = books.grant()
    assert books.table.find(1, lease.lease_id) is lease
    assert books.table.find(2, lease.lease_id) is None
    assert books.table.find(1, lease.lease_id + 1) is None


def test_ids_are_not_given_twice() -> None:
    books = Books()
    ids = []
    for _ in range(5):
        lease = books.grant()
        ids.append(lease.lease_id)
        books.table.drop(lease)
    assert len(set(ids)) == 5
    assert 0 not in ids


def test_a_hold_belongs_to_its_namespace() -> None:
    books = Books()
    hold = books.grant(HOLD, namespace=7)
    assert books.table.hold(7, hold.lease_id) is hold
    assert books.table.hold(8, hold.lease_id) is None
    assert books.table.hold(7, books.grant(LOAD, namespace=7).lease_id) is None


def test_the_oldest_hold_yields_first() -> None:
    books = Books()
    books.grant(HOLD, namespace=2)
    first, second = books.grant(HOLD), books.grant(HOLD)
    assert books.table.oldest_hold(1) is first
    books.table.drop(first)
    assert books.table.oldest_hold(1) is second
    books.table.drop(second)
    assert books.table.oldest_hold(1) is None


def test_bytes_are_counted_per_session() -> None:
    books = Books()
    lease, other = books.grant(slots=(1, 2, 3)), books.grant(session=2)
    assert (lease.size_bytes, books.table.session_bytes(1)) == (3 * SLOT_BYTES, 3 * SLOT_BYTES)
    assert books.table.session_bytes(2) == 2 * SLOT_BYTES
    books.table.drop(lease)
    assert books.table.session_bytes(1) == 0
    assert books.table.session_bytes(2) == other.size_bytes


def test_a_key_without_a_slot_counts_nothing() -> None:
    books = Books()
    lease = books.table.grant(RESERVATION, 1, 1)
    part = LeasePart(Lane(), array("q"), SLOT_BYTES)
    books.table.extend(lease, part)
    books.table.add_slots(lease, part, [5, -1, 6])
    assert lease.size_bytes == 2 * SLOT_BYTES
    assert list(part.slots) == [5, -1, 6]


def test_a_slot_that_is_taken_counts_no_more() -> None:
    books = Books()
    lease = books.grant(RESERVATION, slots=(4, 5))
    assert books.table.take_slot(lease, lease.parts[0], 1) == 5
    assert list(lease.parts[0].slots) == [4, -1]
    assert books.table.session_bytes(1) == SLOT_BYTES


def test_lanes_that_are_taken_leave_the_others() -> None:
    books = Books()
    hold = books.grant(HOLD, slots=(1, 2))
    books.table.extend(hold, LeasePart(Lane(0, 1), array("q", [3]), SLOT_BYTES))
    [taken] = books.table.take_lanes(hold, {Lane(0, 0), Lane(5, 5)})
    assert list(taken.slots) == [1, 2]
    assert [part.lane for part in hold.parts] == [Lane(0, 1)]
    assert books.table.session_bytes(1) == SLOT_BYTES


def test_a_lease_is_dropped_once() -> None:
    books = Books()
    lease = books.grant()
    assert books.table.drop(lease)
    assert not books.table.drop(lease)
    assert len(books.table) == 0
    assert books.table.session_bytes(1) == 0
    assert books.table.of_session(1) == []


def test_leases_end_at_their_deadline_and_not_before() -> None:
    books = Books()
    short, long = books.grant(seconds=5), books.grant(HOLD, seconds=6)
    books.clock.advance(4.999)
    assert books.table.expire() == []
    books.clock.advance(0.001)
    assert books.table.expire() == [short]
    books.clock.advance(1)
    assert books.table.expire() == [long]
    assert books.table.hold(1, long.lease_id) is None
    assert len(books.table) == 0


def test_time_does_not_pass_for_a_lease_that_is_being_filled() -> None:
    books = Books()
    lease = books.table.grant(LOAD, 1, 1)
    books.clock.advance(1e6)
    assert books.table.expire() == []
    assert books.table.is_active(lease)
    books.table.start(lease, 2)
    assert books.table.remaining_seconds(lease) == 2
    books.clock.advance(2)
    assert books.table.expire() == [lease]


def test_only_a_lease_that_lives_is_active() -> None:
    books = Books()
    load, reservation = books.grant(), books.grant(RESERVATION)
    assert books.table.is_active(load)
    assert books.table.is_active(reservation)
    books.table.drop(load)
    books.table.end(reservation)
    assert not books.table.is_active(load)
    assert not books.table.is_active(reservation)


def test_an_expired_reservation_is_quarantined_and_stays() -> None:
    books = Books()
    reservation = books.grant(RESERVATION)
    books.clock.advance(1000)
    assert books.table.expire() == []
    assert reservation.kind is QUARANTINE
    assert books.table.find(1, reservation.lease_id) is reservation
    assert books.table.session_bytes(1) == 2 * SLOT_BYTES
    books.clock.advance(1000)
    assert books.table.expire() == []
    assert books.table.drop(reservation)
    assert books.table.session_bytes(1) == 0


def test_renewing_moves_the_deadline_later_only() -> None:
    books = Books()
    lease = books.grant(seconds=10)
    books.table.renew(lease, 1)
    assert books.table.remaining_seconds(lease) == 10
    books.clock.advance(8)
    books.table.renew(lease, 5)
    books.clock.advance(4.5)
    assert books.table.expire() == []
    books.clock.advance(0.5)
    assert books.table.expire() == [lease]


def test_quarantine_cannot_be_renewed() -> None:
    books = Books()
    reservation = books.grant(RESERVATION, seconds=1)
    assert not books.table.end(reservation)
    books.table.renew(reservation, 100)
    assert books.table.remaining_seconds(reservation) == 1


def test_ending_early_releases_loads_and_holds_and_quarantines_reservations() -> None:
    books = Books()
    load, hold, reservation = books.grant(), books.grant(HOLD), books.grant(RESERVATION)
    assert books.table.end(load)
    assert not books.table.end(load), "released twice"
    assert books.table.end(hold)
    assert not books.table.end(reservation)
    assert books.table.of_session(1) == [reservation]
    assert not books.table.end(reservation)


def test_the_next_deadline_is_never_too_late() -> None:
    books = Books()
    assert books.table.next_deadline() is None
    late, early = books.grant(seconds=9), books.grant(seconds=3)
    books.table.renew(early, 20)
    next_deadline = books.table.next_deadline()
    assert next_deadline is not None
    assert next_deadline <= min(late.deadline, early.deadline)
    books.clock.advance(9)
    assert books.table.expire() == [late]
    assert books.table.next_deadline() == early.deadline

"""Lookup, load and touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.agent.grants import Granted, Grants, release_guards
from kvtier.agent.sessions import Session
from kvtier.agent.turns import READ_SLICE, slices
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Match, Tier
from kvtier.core.lease import Lease, LeaseKind
from kvtier.tiers.size_class import SizeClass


@dataclass(slots=True)
class Found:
    """A lookup's answer for one entry of keys: the leading blocks found, and which are present."""

    matched: int
    presence: list[bool]


class Loading:
    """The reading verbs. Each cuts its batch into slices and lets other work have its turn between
    them; the books are right at every such point. A cancelled call gives back what it took."""

    def __init__(self, grants: Grants) -> None:
        self._grants = grants

    async def lookup(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        *,
        match: Match = Match.PREFIX,
        tiers: frozenset[Tier] = frozenset(),
        shards: Sequence[int] = (),
        hold_seconds: float = 0.0,
    ) -> tuple[list[Found], int]:
        """What is cached, per entry, and the id of the hold (0 if none was asked or granted)."""
        if hold_seconds <= 0:
            return await self._find(session, entries, match, tiers, shards, None), 0
        with self._grants.granting(LeaseKind.HOLD, session, hold_seconds) as hold:
            answers = await self._find(session, entries, match, tiers, shards, hold)
        return answers, hold.lease_id if self._grants.leases.is_active(hold) else 0

    async def _find(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        match: Match,
        tiers: frozenset[Tier],
        shards: Sequence[int],
        hold: Lease | None,
    ) -> list[Found]:
        answers = []
        for keys in entries:
            lanes = [Lane(keys.lane.group, shard) for shard in shards] or [keys.lane]
            found: list[bool] = []
            if not tiers or Tier.HOST in tiers:
                found = await self._present(session, keys, lanes, match, hold)
            found += [False] * (len(keys.hashes) - len(found))
            answers.append(Found([*found, False].index(False), found))
        return answers

    async def _present(
        self,
        session: Session,
        keys: BlockKeys,
        lanes: list[Lane],
        match: Match,
        hold: Lease | None,
    ) -> list[bool]:
        """Which keys every lane has; only up to the first gap if a prefix is asked."""
        size_class = session.namespace.groups[keys.lane.group]
        found: list[bool] = []
        async for part in slices(len(keys.hashes), READ_SLICE):
            columns = [size_class.find_many(lane, keys.hashes[part]) for lane in lanes]
            lowest = columns[0] if len(columns) == 1 else list(map(min, *columns))
            if match is Match.PREFIX and -1 in lowest:
                lowest = lowest[: lowest.index(-1)]
            if hold is not None and self._grants.leases.is_active(hold):
                self._hold(session, size_class, hold, lanes, columns, lowest)
            found += [row >= 0 for row in lowest]
            if len(found) < part.stop:
                break
        size_class.counters.found += found.count(True)
        size_class.counters.looked_up += len(keys.hashes)
        return found

    def _hold(
        self,
        session: Session,
        size_class: SizeClass,
        hold: Lease,
        lanes: list[Lane],
        columns: list[list[int]],
        lowest: list[int],
    ) -> None:
        """Keeps the blocks of each lane where every lane has one."""
        for lane, rows in zip(lanes, columns, strict=True):
            here = [row for row, low in zip(rows, lowest, strict=False) if low >= 0]
            here = here[: self._grants.room(session, size_class)]
            self._grants.refer(size_class, hold, lane, here)

    async def load(
        self,
        session: Session,
        entries: Sequence[BlockKeys],
        *,
        stop_at_gap: bool = False,
        ttl_seconds: float = 0.0,
        hold_id: int = 0,
    ) -> Granted:
        """Leases what is in HOST; REFUSED is what the session may not lease beside what it has."""
        lanes = {keys.lane for keys in entries}
        with self._grants.granting(LeaseKind.LOAD, session, ttl_seconds) as lease:
            granted = Granted(lease)
            guards = self._grants.take_over(session.namespace, hold_id, lanes)
            try:
                for keys in entries:
                    await self._load_entry(session, keys, granted, stop_at_gap=stop_at_gap)
            finally:
                release_guards(guards)
        return granted

    async def _load_entry(
        self, session: Session, keys: BlockKeys, granted: Granted, *, stop_at_gap: bool
    ) -> None:
        size_class = session.namespace.groups[keys.lane.group]
        stopped = False
        async for part in slices(len(keys.hashes), READ_SLICE // 2):
            rows = size_class.find_many(keys.lane, keys.hashes[part])
            if stop_at_gap and (stopped or -1 in rows):
                gap = 0 if stopped else rows.index(-1)
                rows[gap:] = [-1] * (len(rows) - gap)
                stopped = True
            present = [row for row in rows if row >= 0]
            size_class.touch(present)
            leased = present[: self._grants.room(session, size_class)]
            self._grants.refer(size_class, granted.lease, keys.lane, leased)
            _describe(size_class, granted, rows, len(leased))
            size_class.counters.hits += len(leased)
            size_class.counters.misses += rows.count(-1)

    async def touch(self, session: Session, keys: BlockKeys) -> None:
        """Marks cached blocks as used."""
        size_class = session.namespace.groups[keys.lane.group]
        async for part in slices(len(keys.hashes), READ_SLICE):
            rows = size_class.find_many(keys.lane, keys.hashes[part])
            size_class.touch([row for row in rows if row >= 0])


def _describe(size_class: SizeClass, granted: Granted, rows: list[int], leased: int) -> None:
    """Writes the answer for some keys, of which the first `leased` present ones were leased."""
    if leased == len(rows):
        granted.add(size_class, [BlockStatus.OK] * leased, size_class.slots_of(rows))
        return
    statuses, slots = [], []
    for row in rows:
        is_leased = row >= 0 and leased > 0
        leased -= is_leased
        slots.append(size_class.residency.slot[row] if is_leased else -1)
        status = BlockStatus.OK if is_leased else BlockStatus.REFUSED
        statuses.append(status if row >= 0 else BlockStatus.ABSENT)
    granted.add(size_class, statuses, slots)

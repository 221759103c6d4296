"""What a load gets of what is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.serving.prefetching import Prefetching
from kvtier.agent.serving.whereabouts import Whereabouts
from kvtier.agent.sessions.grants import Granted, Grants
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.tiers.device import Device
from kvtier.agent.turns import READ_SLICE, data_slices
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.residency import NONE
from kvtier.tiers.size_class import Counters, SizeClass

_EVERYTHING = frozenset(Tier)


class Supplier(Protocol):
    """A tier that supplied the bytes of a block, where that is not HOST."""

    @property
    def tier(self) -> Tier: ...

    def counters(self, namespace: Namespace, group: int) -> Counters: ...


Arrived = dict[tuple[Lane, bytes], Supplier]


class Leasing:
    """Leases blocks in HOST or on a device, answers for every key, and counts hits and misses.

    `on_used` are told which rows of HOST were leased.
    """

    def __init__(
        self,
        grants: Grants,
        promotion: Promotion,
        prefetching: Prefetching,
        whereabouts: Whereabouts,
    ) -> None:
        self.on_used: list[Callable[[SizeClass, Sequence[int]], None]] = []
        self._grants = grants
        self._promotion = promotion
        self._prefetching = prefetching
        self._whereabouts = whereabouts

    async def lease(
        self,
        session: Session,
        keys: BlockKeys,
        granted: Granted,
        arrived: Arrived,
        device: Device | None,
        stop_at_gap: bool,
    ) -> None:
        """Of one entry of keys: what is in HOST now, and its copies on the device; `arrived` says
        which tiers supplied what was not there before."""
        size_class = session.namespace.groups[keys.lane.group]
        stopped = False
        async for part in data_slices(len(keys.hashes), READ_SLICE // 2):
            hashes = keys.hashes[part]
            rows = size_class.find_many(keys.lane, hashes)
            if stop_at_gap and (stopped or -1 in rows):
                gap = 0 if stopped else rows.index(-1)
                rows[gap:] = [-1] * (len(rows) - gap)
                stopped = True
            present = [row for row in rows if row >= 0]
            self._prefetching.used(session.namespace, keys.lane, hashes, rows)
            size_class.touch(present)
            leased = present[: self._grants.room(session, size_class)]
            found: Collection[int] = ()
            if device is None:
                self._grants.refer(size_class, granted.lease, keys.lane, leased)
                self._describe(session.namespace, keys.lane, hashes, granted, rows, len(leased))
            else:
                piece = BlockKeys(keys.lane, hashes, *_before(keys, part.start))
                found = self._lease_on_device(
                    session.namespace, piece, granted, rows, len(leased), device
                )
            for on_used in self.on_used:
                on_used(size_class, leased)
            self._count(session, keys.lane, hashes, granted, arrived, device, found)

    def _lease_on_device(
        self,
        namespace: Namespace,
        keys: BlockKeys,
        granted: Granted,
        rows: list[int],
        leased: int,
        device: Device,
    ) -> Collection[int]:
        """Leases copies on the device, and in HOST what it has not; that may come to it then.

        Of blocks in `rows` the first `leased` present ones. The indexes of those on the device.
        """
        size_class, start = namespace.groups[keys.lane.group], len(granted.statuses)
        chosen = [index for index, row in enumerate(rows) if row >= 0][:leased]
        mine = [NONE] * len(rows)
        for index in chosen:
            mine[index] = rows[index]
        found = device.find(namespace, keys.lane, keys.hashes, mine)
        others = [rows[index] for index in chosen if index not in found]
        self._grants.refer(size_class, granted.lease, keys.lane, others)
        device.lease(self._grants, granted.lease, namespace, keys.lane, found)
        self._describe(namespace, keys.lane, keys.hashes, granted, rows, leased)
        device.answer(granted, start, namespace, keys.lane.group, found)
        device.promote(namespace, keys, mine, found)
        return found

    async def leave_out(
        self, namespace: Namespace, keys: BlockKeys, start: int, granted: Granted
    ) -> None:
        """Answers for what is not worth waiting for."""
        async for part in data_slices(len(keys.hashes) - start, READ_SLICE):
            hashes = keys.hashes[start + part.start : start + part.stop]
            places = self._whereabouts.column(namespace, keys.lane, hashes, _EVERYTHING)
            granted.add(
                namespace.groups[keys.lane.group],
                [BlockStatus.PENDING if place else BlockStatus.ABSENT for place in places],
                [-1] * len(hashes),
            )
            granted.sources += [0] * len(hashes)

    def _describe(
        self,
        namespace: Namespace,
        lane: Lane,
        hashes: Sequence[bytes],
        granted: Granted,
        rows: list[int],
        leased: int,
    ) -> None:
        """Writes the answer for some keys, of which the first `leased` present ones were leased."""
        size_class = namespace.groups[lane.group]
        if leased == len(rows):
            granted.add(size_class, [BlockStatus.OK] * leased, size_class.slots_of(rows))
            return
        statuses, slots = [], []
        for row, block_hash in zip(rows, hashes, strict=True):
            is_leased = row >= 0 and leased > 0
            leased -= is_leased
            slots.append(size_class.residency.slot[row] if is_leased else -1)
            if is_leased:
                statuses.append(BlockStatus.OK)
            elif row >= 0:
                statuses.append(BlockStatus.REFUSED)
            else:
                statuses.append(self._without(namespace, lane, block_hash))
        granted.add(size_class, statuses, slots)

    def _without(self, namespace: Namespace, lane: Lane, block_hash: bytes) -> BlockStatus:
        """Why a block is not in HOST: on its way, in a tier without room in HOST, or gone."""
        if self._promotion.flight(namespace.groups[lane.group], lane, block_hash) is not None:
            return BlockStatus.PENDING
        [source] = self._promotion.find(namespace, lane, [block_hash], _EVERYTHING)
        return BlockStatus.ABSENT if source is None else BlockStatus.REFUSED

    def _count(
        self,
        session: Session,
        lane: Lane,
        hashes: Sequence[bytes],
        granted: Granted,
        arrived: Arrived,
        device: Device | None,
        found: Collection[int],
    ) -> None:
        """Hits and misses; a block counts for the tier that supplied it: of those with an index in
        `found`, that is the device."""
        namespace, speed = session.namespace, session.compute_seconds_per_block
        statuses = granted.statuses[-len(hashes) :]
        host = namespace.groups[lane.group].counters
        hits, absent = statuses.count(BlockStatus.OK), statuses.count(BlockStatus.ABSENT)
        if not arrived and not found:
            granted.sources += [Tier.HOST if each == BlockStatus.OK else 0 for each in statuses]
            host.hits += hits
            host.misses += absent
            namespace.usage.loaded(Tier.HOST, lane, hits, speed)
            return
        host.misses += absent
        for index, (status, block_hash) in enumerate(zip(statuses, hashes, strict=True)):
            source = device if index in found else arrived.get((lane, block_hash))
            tier = Tier.HOST if source is None else source.tier
            granted.sources.append(tier if status == BlockStatus.OK else 0)
            if status == BlockStatus.OK:
                counters = host if source is None else source.counters(namespace, lane.group)
                counters.hits += 1
                namespace.usage.loaded(tier, lane, 1, speed)


def _before(keys: BlockKeys, start: int) -> tuple[bytes, int]:
    """The parent and the position of a part of some keys."""
    return keys.hashes[start - 1] if start else keys.parent, keys.position + start

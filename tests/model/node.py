"""The parts of one agent behind its sockets, wired as in `kvtier.daemon`, and their audit."""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

from kvtier import memory
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.loading import Loading
from kvtier.agent.serving.pins import PinLimits, Pins
from kvtier.agent.serving.storing import Storing
from kvtier.agent.sessions.grants import Grants, LeaseLimits
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.sessions.sessions import Access, Attachment, Sessions
from kvtier.core.block import Tier
from kvtier.core.lease import LeaseTable
from kvtier.core.rules import NamespaceRule
from kvtier.testing import ManualClock
from kvtier.tiers.arena import HostExtent, SharedSlotTable
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent
from tests.model.stepping import SteppedLoop, SteppedMover

EVERYTHING = Access(frozenset({"*"}))
_PLENTY_BYTES = 1 << 40
_BACKGROUND_TURNS = 3000
_QUIET_TURNS = 4
_COLLECT_EVERY = 16


class Node:
    """One agent. `run` audits its books after every turn of its loop."""

    closed = 0

    def __init__(
        self,
        capacity_bytes: int,
        limits: LeaseLimits | None = None,
        pin_limits: PinLimits | None = None,
        rules: Sequence[NamespaceRule] = (),
        policy: str = "lru",
    ) -> None:
        self.clock = ManualClock()
        self.loop = SteppedLoop(self.clock)
        self.mover = SteppedMover()
        self.host = HostTier(capacity_bytes, policy=policy)
        self.placement = Placement(
            self.host,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: _PLENTY_BYTES,
        )
        self.leases = LeaseTable(self.clock)
        self.limits = limits or LeaseLimits()
        self.grants = Grants([self.host], self.leases, self.limits)
        self.namespaces = Namespaces([self.host], limit=64, rules=rules)
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=64,
            wall_clock=self.clock,
            release=self.grants.release_slots,
            on_gone=self._forget,
        )
        promotion = Promotion(self.placement, [])
        self.pins = Pins([self.host], promotion, pin_limits or PinLimits(), self.clock)
        self.loading = Loading(self.grants, promotion)
        self.storing = Storing(self.grants, self.placement, self.mover)
        self.retired: list[Extent] = []
        self.placement.on_retired = self.retired.append

    def _forget(self, attachment: Attachment) -> None:
        self.host.arena.forget_holder(attachment)

    async def resize(self, pages: int) -> None:
        self.placement.resize(max(pages * memory.PAGE_BYTES, self.host.arena.least_bytes))

    def attach(self, client_id: bytes) -> Attachment:
        return self.sessions.attach(client_id, uid=0, gid=0, pid=1, access=EVERYTHING)

    def run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Runs calls side by side, then what they left in the background."""
        results = self.loop.complete(*work, after_turn=self.audit)
        self.settle()
        return results

    def settle(self) -> None:
        """Lets background work end, and timers that are due."""
        quiet = 0
        for _ in range(_BACKGROUND_TURNS):
            self.loop.turn()
            self.audit()
            quiet = 0 if self.mover.queue_depth or self._busy() else quiet + 1
            if quiet == _QUIET_TURNS:
                return
        raise AssertionError("background work does not end")

    def _busy(self) -> bool:
        shrinking = self.placement.shrinking
        return (shrinking.is_active and not shrinking.is_waiting) or any(
            extent.populating or (extent.retiring and not extent.used_slots)
            for each in self.host.classes
            for extent in each.extents
        )

    def audit(self) -> None:
        """What holds at every turn of the loop."""
        self.host.check_integrity()
        for each in self.host.classes:
            assert each.free_slots == _free_slots_of(each), "a free slot is in no extent"
            owned = sum(len(each.live_slots(extent)) for extent in each.extents)
            assert owned == len(each.residency), "a slot is owned by a block of another"
        assert self.kernel_bytes() <= self.host.arena.allocated_bytes

    def audit_at_rest(self) -> None:
        """What holds when no call is in flight: references are leases and pins, nothing else."""
        listed: Counter[tuple[int, int]] = Counter()
        for lease in self.leases:
            size_bytes = 0
            for part in lease.parts:
                slots = [slot for slot in part.slots if slot >= 0]
                listed.update((lease.namespace_id, slot) for slot in slots)
                size_bytes += len(slots) * part.slot_bytes
            assert size_bytes == lease.size_bytes, lease
        for namespace in self.namespaces:
            for each in namespace.classes_of(Tier.HOST):
                slots = each.slots_of(each.pinned)
                listed.update((namespace.namespace_id, slot) for slot in slots)
            table = namespace.groups[0].table
            for slot, count in _nonzero(table.references):
                assert listed.pop((namespace.namespace_id, slot), 0) == count, (slot, count)
        assert not listed, f"leases list slots without references: {listed}"

    def kernel_bytes(self) -> int:
        """Memory of all extents and generation tables, as the kernel counts it."""
        fds = set()
        for each in self.host.classes:
            assert isinstance(each.table, SharedSlotTable)
            fds.add(each.table.fd)
            for extent in each.extents:
                assert isinstance(extent, HostExtent)
                fds.add(extent.fd)
        return sum(map(memory.allocated_bytes, fds))

    def close(self) -> None:
        self.loop.complete(self.placement.close(), after_turn=lambda: None)
        self.grants.close()
        self.pins.close()
        self.mover.close()
        self.host.close()
        self.loop.close()
        # Mappings go with the last array, and the parts refer to each other.
        Node.closed += 1
        if Node.closed % _COLLECT_EVERY == 0:
            gc.collect()


def _free_slots_of(size_class: SizeClass) -> int:
    table = size_class.table
    return sum(
        table.owner[slot] < 0 and not table.references[slot]
        for extent in size_class.extents
        if not extent.retiring
        for slot in range(extent.base, extent.base + extent.populated_slots)
    )


def _nonzero(counts: array[int]) -> list[tuple[int, int]]:
    return [(index, count) for index, count in enumerate(counts) if count]

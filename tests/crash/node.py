"""The parts of one agent behind its sockets, DISK among them, on a loop of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from kvtier import BlockStatus, NamespaceSpec
from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.operating.resizing import Resizing
from kvtier.agent.operating.stats import TierStats
from kvtier.agent.operating.upkeep import Upkeep
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.loading import Loading
from kvtier.agent.serving.storing import Storing
from kvtier.agent.sessions.grants import Grants, LeaseLimits
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.sessions.sessions import Access, Session, Sessions
from kvtier.agent.tiers.disk import Disk, DiskSettings
from kvtier.core.block import BlockKeys, Lane
from kvtier.core.lease import LeaseTable
from kvtier.testing import FaultyIO, ManualClock, is_payload_for, payload_for
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.slab import Slab
from kvtier.tiers.host import HostTier

T = TypeVar("T")

KIB, MIB = 1 << 10, 1 << 20
EVERYTHING = Access(frozenset({"*"}))
_PLENTY_BYTES = 1 << 40
_UNHANDLED = ("background work failed", "making room failed")


@dataclass(frozen=True)
class Sizes:
    """Of the tiers, in bytes; times in seconds."""

    disk_bytes: int = 16 * MIB
    host_bytes: int = 4 * MIB
    timeout_seconds: float = 10.0
    in_flight_bytes: int = 256 * MIB
    min_free_bytes: int = 0
    write_policy: WritePolicy = WritePolicy.THROUGH


@dataclass
class Answer:
    """What a load gave: hashes by what became of them."""

    right: list[bytes] = field(default_factory=list)
    wrong: list[bytes] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)

    def add(self, other: Answer) -> None:
        self.right += other.right
        self.wrong += other.wrong
        self.missing += other.missing


class Complaints(logging.Handler):
    """Exceptions that nobody handled, as the log and the loop tell of them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info or any(each in message for each in _UNHANDLED):
            self.found.append(logging.Formatter().format(record))

    def hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.found.append(f"{context.get('message')}: {context.get('exception')!r}")


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs it on a new loop; fails for any exception that was left to the loop or the log."""
    complaints = Complaints()
    logging.getLogger("kvtier").addHandler(complaints)
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(complaints.hear)
            result = runner.run(_then_stop(work))
            gc.collect(1)  # a task that nobody asked complains when it goes
    finally:
        logging.getLogger("kvtier").removeHandler(complaints)
    assert not complaints.found, complaints.found
    return result


async def _then_stop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Leaves no node behind, even if the work fails."""
    try:
        return await work()
    finally:
        for node in list(Node.running):
            if isinstance(node.io, FaultyIO):
                node.io.heal()
            await node.stop()


class Node:
    """One agent without sockets. To be made and used on one loop."""

    running: ClassVar[set[Node]] = set()

    def __init__(
        self, paths: Sequence[Path], sizes: Sizes | None = None, io: BlockIO | None = None
    ) -> None:
        self.sizes = sizes or Sizes()
        self.io = io
        self.mover = Mover(1)
        self.host = HostTier(self.sizes.host_bytes)
        self.placement = Placement(
            self.host,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: _PLENTY_BYTES,
        )
        settings = DiskSettings(
            paths=paths,
            capacity_bytes=self.sizes.disk_bytes,
            write_policy=self.sizes.write_policy,
            min_free_bytes=self.sizes.min_free_bytes,
            timeout_seconds=self.sizes.timeout_seconds,
            max_in_flight_bytes=self.sizes.in_flight_bytes,
        )
        self.disk = Disk(settings, self.host, io)
        tiers = [self.host, self.disk.tier]
        self.leases = LeaseTable(ManualClock())
        self.grants = Grants(tiers, self.leases, LeaseLimits())
        self.namespaces = Namespaces(tiers, limit=64)
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=64,
            wall_clock=ManualClock(),
            release=self.grants.release_slots,
            on_gone=self.host.arena.forget_holder,
        )
        self.promotion = Promotion(self.placement, [self.disk.reader])
        self.loading = Loading(self.grants, self.promotion)
        self.storing = Storing(self.grants, self.placement, self.mover)
        self.loading.on_used.append(self.disk.demotion.used)
        self.storing.on_stored.append(self.disk.demotion.stored)
        self.upkeep = Upkeep(
            self.host,
            self.mover,
            self.disk,
            None,
            self.namespaces,
            self.sessions,
            self.grants,
            Lifecycle(),
            lambda is_ready: None,
            Resizing(self.placement, self.disk, [self.disk.demotion]),
        )
        self._sessions: dict[str, Session] = {}
        Node.running.add(self)

    async def start(self) -> None:
        """Returns when what is on DISK has been found."""
        await self.disk.restore_namespaces(self.namespaces)
        await self.disk.recover(self.namespaces)

    def session(self, spec: NamespaceSpec) -> Session:
        if spec.label not in self._sessions:
            token = self.sessions.attach(bytes(16), 0, 0, 1, EVERYTHING).token
            self._sessions[spec.label], _ = self.sessions.open(token, spec, "")
        return self._sessions[spec.label]

    async def store(self, spec: NamespaceSpec, hashes: Sequence[bytes]) -> list[bytes]:
        """Stores the beginning of a sequence; the hashes that are in the cache now."""
        session = self.session(spec)
        host = session.namespace.groups[0]
        granted = await self.storing.reserve(session, [_keys(hashes)])
        extents = {each.extent_id: each for each in host.extents}
        for index, block_hash in enumerate(hashes):
            if granted.statuses[index] == BlockStatus.OK:
                extent = extents[granted.extents[index]]
                cell = cell_of(host.table, extent.base + granted.slots[index])
                np.copyto(cell[: spec.block_bytes[0]], payload(spec, block_hash))
        taken = [i for i, each in enumerate(granted.statuses) if each == BlockStatus.OK]
        if taken:
            await self.storing.commit(session, granted.lease.lease_id, taken)
        here = (BlockStatus.OK, BlockStatus.PRESENT)
        return [
            each for each, status in zip(hashes, granted.statuses, strict=True) if status in here
        ]

    async def load(
        self, spec: NamespaceSpec, hashes: Sequence[bytes], *, patience_seconds: float = 30.0
    ) -> Answer:
        """Loads blocks, a quarter of HOST at a time, and judges every byte."""
        session, answer = self.session(spec), Answer()
        host = session.namespace.groups[0]
        step = max(1, self.sizes.host_bytes // 4 // host.slot_bytes)
        for first in range(0, len(hashes), step):
            part = hashes[first : first + step]
            granted = await self.loading.load(
                session, [_keys(part)], patience_seconds=patience_seconds
            )
            rows = host.find_many(Lane(), part)
            for block_hash, status, row in zip(part, granted.statuses, rows, strict=True):
                if status != BlockStatus.OK:
                    answer.missing.append(block_hash)
                    continue
                cell = cell_of(host.table, host.residency.slot[row])[: spec.block_bytes[0]]
                is_right = is_payload_for(
                    cell, block_hash, spec.block_bytes[0], namespace=spec.label
                )
                (answer.right if is_right else answer.wrong).append(block_hash)
            self.grants.release(granted.lease)
        return answer

    def empty_host(self) -> None:
        """Evicts from HOST what is not in use, so that loads go to DISK."""
        for size_class in self.host.classes:
            while size_class.evict_one():
                pass

    def stats(self) -> TierStats:
        """DISK's."""
        return self.upkeep.stats("")[1]

    def audit(self) -> None:
        """The books of both tiers agree."""
        self.host.check_integrity()
        self.disk.tier.check_integrity()

    async def stop(self) -> None:
        """As an agent that is asked to stop."""
        Node.running.discard(self)
        going = list(self.disk.placement._discards)
        await self.promotion.close()
        await self.disk.stop()
        for extent in going:  # an agent's process would end with them open
            assert isinstance(extent, Slab)
            extent.close()
        await self.placement.close()
        self.grants.close()
        self.mover.close()
        self.host.close()


def payload(spec: NamespaceSpec, block_hash: bytes) -> Any:
    return payload_for(block_hash, spec.block_bytes[0], namespace=spec.label)


def _keys(hashes: Sequence[bytes]) -> BlockKeys:
    return BlockKeys(Lane(), tuple(hashes))

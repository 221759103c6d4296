"""The parts of one agent with DISK, on real files and a real loop, wired as in `kvtier.daemon`."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import logging
import selectors
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.moving.storage_mover import StorageMover
from kvtier.agent.operating.resizing import Resizing
from kvtier.agent.operating.upkeep import Upkeep
from kvtier.agent.placing.expiry import Expiry
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.loading import Loading
from kvtier.agent.serving.pins import PinLimits, Pins
from kvtier.agent.serving.storing import Storing
from kvtier.agent.sessions.grants import Granted, Grants, LeaseLimits
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.sessions.sessions import Access, Session, Sessions
from kvtier.agent.tiers.disk import Disk, DiskSettings
from kvtier.core.ages import Ages
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.lease import LeaseTable
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.memory import ByteArray
from kvtier.testing import FaultyIO, ManualClock, is_payload_for, payload_for
from kvtier.tiers.arena import cell_of
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.slab import Slab
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent

P = ParamSpec("P")
T = TypeVar("T")

PAGE = 4096
MIB = 1 << 20
SPEC = NamespaceSpec(name="model", block_bytes=(PAGE,))
OK, ABSENT, PENDING = BlockStatus.OK, BlockStatus.ABSENT, BlockStatus.PENDING
REFUSED, PRESENT = BlockStatus.REFUSED, BlockStatus.PRESENT
_EVERYTHING = Access(frozenset({"*"}))
_PLENTY_BYTES = 1 << 40
_DEADLINE_SECONDS = 10.0
_HASTY_TURNS = 200
_PAUSE_SECONDS = 0.001
#: How much faster timers run on a hurried loop.
_HURRY = 40


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test on a loop of its own; fails for exceptions that were left to the loop."""
    return _on(test, asyncio.new_event_loop)


def on_hurried_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """As `on_loop`, and two seconds of a timer take 50 ms."""
    return _on(test, lambda: _HurriedLoop(_HurriedSelector()))


def _on(
    test: Callable[P, Coroutine[Any, Any, None]],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        left: list[Mapping[str, Any]] = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: left.append(context))
            runner.run(test(*args, **kwargs))
        assert not left, left

    return run


class _HurriedLoop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return super().time() * _HURRY


class _HurriedSelector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / _HURRY)


async def until(condition: Callable[[], object], seconds: float = _DEADLINE_SECONDS) -> None:
    """Lets others have their turns until it holds. Raises AssertionError at a deadline.

    After many turns the loop stands still for a moment each time: one that only polls lets go of
    the interpreter so often, and for so short, that other threads hardly get it.
    """
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        if condition():
            return
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0 if turn < _HASTY_TURNS else _PAUSE_SECONDS)


async def in_time(work: Awaitable[T]) -> T:
    """What never ends is a failure, and no hung test."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    task = asyncio.ensure_future(work)
    while not task.done():
        if time.monotonic() > deadline:
            task.cancel()
            raise AssertionError(f"not within {_DEADLINE_SECONDS} s")
        await asyncio.wait([task], timeout=0.1)
    return task.result()


def names(name: str, count: int, start: int = 0) -> tuple[bytes, ...]:
    """Hashes of consecutive blocks of the sequence of this name."""
    return tuple(
        hashlib.sha256(f"{name} {position}".encode()).digest()
        for position in range(start, start + count)
    )


def sequence(name: str, count: int, *, start: int = 0, lane: Lane | None = None) -> BlockKeys:
    """Keys of consecutive blocks of the sequence of this name."""
    parent = names(name, 1, start - 1)[0] if start else b""
    return BlockKeys(lane or Lane(), names(name, count, start), parent, start)


class GatedIO(FaultyIO):
    """Real files; calls of a chosen method wait at a gate, by the order in which they come."""

    def __init__(self) -> None:
        super().__init__(Random(0))
        self._gate = threading.Condition()
        self._left: Counter[str] = Counter()
        self._opened: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()

    def shut(self, name: str, calls: int = 1 << 30) -> None:
        """The next `calls` of a method wait."""
        with self._gate:
            self._left[name] = calls

    def let_pass(self, name: str | None = None) -> None:
        """Those that wait go on, and no further one waits."""
        with self._gate:
            for each in [name] if name else [*self._left, *self._waiting]:
                self._left[each] = 0
                self._opened[each] += 1
            self._gate.notify_all()

    def waiting(self, name: str) -> int:
        """How many stand at the gate."""
        with self._gate:
            return self._waiting[name]

    def _pass(self, name: str) -> None:
        with self._gate:
            if not self._left[name]:
                return
            self._left[name] -= 1
            opened = self._opened[name]
            self._waiting[name] += 1
            self._gate.wait_for(lambda: self._opened[name] != opened)
            self._waiting[name] -= 1

    def open(self, path: Path, flags: int) -> int:
        self._pass("open")
        return super().open(path, flags)

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        self._pass("read")
        return super().read(fd, buffers, offset)

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        self._pass("write")
        return super().write(fd, buffers, offset)

    def sync(self, fd: int) -> None:
        self._pass("sync")
        super().sync(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._pass("allocate")
        super().allocate(fd, size_bytes)


class DiskAgent:
    """One agent without sockets; an async context manager that starts and closes it.

    `audit` says what holds whenever nothing is under way.
    """

    def __init__(
        self,
        path: Path,
        *,
        io: BlockIO | None = None,
        volumes: int = 1,
        host_pages: int = 256,
        host_policy: str = "lru",
        disk_bytes: int = 8 * MIB,
        max_share: float = 1.0,
        is_started: bool = True,
        pin_limits: PinLimits | None = None,
        rules: Sequence[NamespaceRule] = (),
        ages: Ages | None = None,
        host_work_seconds: float = 0.0,
        **settings: Any,
    ) -> None:
        settings.setdefault("depth", 4)
        self.clock = ManualClock()
        self.host_work_seconds = host_work_seconds
        self.mover = Mover(1)
        self.host = HostTier(host_pages * PAGE, policy=host_policy, ages=ages)
        self.placement = Placement(
            self.host,
            self._host_work,
            spare_bytes=lambda: _PLENTY_BYTES,
        )
        paths = [path / f"volume-{number}" for number in range(volumes)]
        self.disk = Disk(
            DiskSettings(paths=paths, capacity_bytes=disk_bytes * volumes, **settings),
            self.host,
            io,
        )
        tiers = [self.host, self.disk.tier]
        self.expiry = Expiry(tiers, rules)
        self.leases = LeaseTable(self.clock)
        self.grants = Grants(tiers, self.leases, LeaseLimits(max_share=max_share))
        self.namespaces = Namespaces(tiers, limit=64, rules=rules)
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=64,
            wall_clock=self.clock,
            release=self.grants.release_slots,
            on_gone=self.host.arena.forget_holder,
        )
        self.promotion = Promotion(self.placement, [self.disk.reader])
        self.pins = Pins(tiers, self.promotion, pin_limits or PinLimits(), self.clock)
        self.loading = Loading(self.grants, self.promotion)
        self.storing = Storing(self.grants, self.placement, self.mover)
        self.loading.on_used.append(self.disk.demotion.used)
        self.storing.on_stored.append(self.disk.demotion.stored)
        self.lifecycle = Lifecycle()
        self.ready: list[bool] = []
        self.upkeep = Upkeep(
            self.host,
            self.mover,
            self.disk,
            None,
            self.namespaces,
            self.sessions,
            self.grants,
            self.lifecycle,
            self.ready.append,
            Resizing(self.placement, self.disk, [self.disk.demotion]),
        )
        self._io = io
        self._is_started = is_started
        self._sessions: dict[tuple[str, str], Session] = {}

    async def __aenter__(self) -> DiskAgent:
        await self.disk.restore_namespaces(self.namespaces)
        if self._is_started:
            await self.disk.recover(self.namespaces)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(self._io, GatedIO):
            self._io.let_pass()
            self._io.heal()
        await self.promotion.close()
        await self.disk.stop()
        await self.placement.close()
        self.grants.close()
        self.pins.close()
        self.mover.close()
        self.host.close()

    async def _host_work(self, extent: Extent, call: Callable[..., T], *args: Any) -> T:
        """What HOST's movers do, and as slowly as the test likes."""
        if self.host_work_seconds:
            await asyncio.sleep(self.host_work_seconds)
        return await self.mover.run(call, *args)

    # Workers.

    def session(self, spec: NamespaceSpec = SPEC, worker: str = "") -> Session:
        key = (spec.label, worker)
        if key not in self._sessions:
            client_id = hashlib.sha256(worker.encode()).digest()[:16]
            token = self.sessions.attach(client_id, 0, 0, 1, _EVERYTHING).token
            self._sessions[key], _ = self.sessions.open(token, spec, worker)
        return self._sessions[key]

    async def store(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> list[int]:
        """Stores with the bytes that belong to the keys."""
        session = self.session(spec)
        granted = await self.storing.reserve(session, [keys])
        for part in granted.lease.parts:
            for block_hash, slot in zip(keys.hashes, part.slots, strict=True):
                if slot >= 0:
                    size_bytes = spec.block_bytes[keys.lane.group]
                    cell = cell_of(session.namespace.groups[keys.lane.group].table, slot)
                    np.copyto(cell[:size_bytes], payload_of(spec, keys.lane, block_hash))
        if granted.lease.size_bytes:
            await self.storing.commit(session, granted.lease.lease_id)
        return granted.statuses

    async def store_on_disk(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> None:
        """Stores, and leaves it on DISK alone."""
        await self.store(keys, spec)
        await until(lambda: all(self.on_disk(keys, spec)))
        await self.disk.writer.settled()
        self.leave_host(keys, spec)

    def leave_host(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> None:
        """As if HOST had evicted them."""
        host = self.host_class(spec, keys.lane.group)
        for row in reversed(host.find_many(keys.lane, keys.hashes)):
            if row >= 0:
                host.forget(row)

    async def load(self, *entries: BlockKeys, spec: NamespaceSpec = SPEC, **how: Any) -> Granted:
        """Leases blocks; whoever wants others to evict them calls `release`."""
        return await self.loading.load(self.session(spec), entries, **how)

    async def load_and_release(
        self, *entries: BlockKeys, spec: NamespaceSpec = SPEC, **how: Any
    ) -> list[int]:
        """The statuses; every block that came is judged to the last byte."""
        granted = await self.load(*entries, spec=spec, **how)
        self.judge(granted, entries, spec)
        self.grants.release(granted.lease)
        return granted.statuses

    def judge(self, granted: Granted, entries: Iterable[BlockKeys], spec: NamespaceSpec) -> None:
        keys = [(each.lane, block_hash) for each in entries for block_hash in each.hashes]
        for (lane, block_hash), status, extent_id, slot in zip(
            keys, granted.statuses, granted.extents, granted.slots, strict=True
        ):
            if status == OK:
                host = self.host_class(spec, lane.group)
                [extent] = [each for each in host.extents if each.extent_id == extent_id]
                size_bytes = spec.block_bytes[lane.group]
                cell = cell_of(host.table, extent.base + slot)[:size_bytes]
                assert is_payload_for(cell, block_hash, size_bytes, namespace=_scope(spec, lane))

    # What is where.

    def host_class(self, spec: NamespaceSpec = SPEC, group: int = 0) -> SizeClass:
        return self.session(spec).namespace.groups[group]

    def disk_class(self, spec: NamespaceSpec = SPEC, group: int = 0) -> SizeClass:
        return self.session(spec).namespace.tiers[Tier.DISK][group]

    def in_host(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> list[bool]:
        rows = self.host_class(spec, keys.lane.group).find_many(keys.lane, keys.hashes)
        return [row >= 0 for row in rows]

    def on_disk(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> list[bool]:
        rows = self.disk_class(spec, keys.lane.group).find_many(keys.lane, keys.hashes)
        return [row >= 0 for row in rows]

    @property
    def slabs(self) -> list[Slab]:
        return [slab for _, slab in self.disk.tier.all_slabs()]

    def place(
        self, keys: BlockKeys, index: int = 0, spec: NamespaceSpec = SPEC
    ) -> tuple[Slab, int]:
        """The slab of a block and its slot there."""
        disk = self.disk_class(spec, keys.lane.group)
        slot = disk.residency.slot[disk.residency.find(keys.lane, keys.hashes[index])]
        slab = disk.table.extent_of(slot)
        assert isinstance(slab, Slab)
        return slab, slot - slab.base

    def spoil(self, keys: BlockKeys, index: int = 0, spec: NamespaceSpec = SPEC) -> None:
        """Flips a bit of a block's payload on the device."""
        slab, slot = self.place(keys, index, spec)
        with slab.data_path.open("r+b") as file:
            file.seek(slot * slab.slot_bytes + 5)
            [byte] = file.read(1)
            file.seek(slot * slab.slot_bytes + 5)
            file.write(bytes([byte ^ 1]))

    @property
    def volume(self) -> StorageMover[Volume]:
        return self.disk.movers[0]

    async def quiet(self) -> None:
        """Returns when no call is in a thread's hands and no block is on its way anywhere."""
        demotion = self.disk.demotion
        await until(
            lambda: (
                not any(mover.queue_depth for mover in self.disk.movers)
                and not demotion.waiting_bytes
            )
        )
        await self.disk.writer.settled()

    def audit(self) -> None:
        """References are leases and pins, and nothing else; books are right."""
        for tier in (self.host, self.disk.tier):
            tier.check_integrity()
            listed: Counter[tuple[int, int]] = Counter()
            for lease in self.leases:
                for part in lease.parts:
                    if part.tier is tier.tier:
                        listed.update(
                            (lease.namespace_id, each) for each in part.slots if each >= 0
                        )
            for namespace in self.namespaces:
                for each in namespace.classes_of(tier.tier):
                    slots = each.slots_of(each.pinned)
                    listed.update((namespace.namespace_id, slot) for slot in slots)
                table = namespace.tiers[tier.tier][0].table
                for slot, count in enumerate(table.references):
                    if count:
                        assert listed.pop((namespace.namespace_id, slot), 0) == count, (tier, slot)
            assert not listed


def payload_of(spec: NamespaceSpec, lane: Lane, block_hash: bytes) -> ByteArray:
    return payload_for(block_hash, spec.block_bytes[lane.group], namespace=_scope(spec, lane))


def _scope(spec: NamespaceSpec, lane: Lane) -> str:
    return f"{spec.label} {lane.group} {lane.shard}"


class Messages(logging.Handler):
    """What `kvtier` logs, from WARNING on; a context manager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def about(self, text: str) -> int:
        return sum(text in message for message in self.found)

    def __enter__(self) -> Messages:
        logging.getLogger("kvtier").addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("kvtier").removeHandler(self)

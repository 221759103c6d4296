"""Whatever a device does, no load is wrong, and the tier says how it is."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.operating.stats import TierState
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.errors import KvtierError
from kvtier.testing import Fault, FaultyIO
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

_SPECS = (spec_of("small", 4 * KIB), spec_of("large", 9000))
_SIZES = Sizes(disk_bytes=4 * MIB, host_bytes=1 * MIB, timeout_seconds=2.0)
_ROOMY = Sizes(disk_bytes=16 * MIB, host_bytes=4 * MIB, timeout_seconds=0.5)
_BACK_SECONDS = 15.0
_OPERATIONS = 500
_WORKERS = 4

_HARMLESS = {
    Fault.SHORT_READ: 0.2,
    Fault.SHORT_WRITE: 0.2,
    Fault.INTERRUPTION: 0.2,
    Fault.SLOW_CALL: 0.02,
}
_READING = {Fault.READ_ERROR: 0.1, Fault.BIT_FLIP: 0.1, Fault.SHORT_READ: 0.1}
_WRITING = {
    Fault.WRITE_ERROR: 0.05,
    Fault.TORN_WRITE: 0.05,
    Fault.SYNC_ERROR: 0.05,
    Fault.ALLOCATE_ERROR: 0.2,
    Fault.OPEN_ERROR: 0.1,
}
_PHASES: Sequence[Mapping[Fault, float]] = (
    _HARMLESS,
    _READING,
    _HARMLESS,
    _WRITING,
    _READING,
    _HARMLESS,
    {**_HARMLESS, **_READING, **_WRITING},
    _READING,
)


class Model:
    """What may be found of one worker's blocks."""

    def __init__(self, random: Random, number: int) -> None:
        self.random = random
        self.number = number
        self.evicted: set[tuple[str, bytes]] = set()
        self.loads = 0

    def sequence(self) -> list[bytes]:
        name = f"{self.number}/{self.random.randrange(24)}"
        return hashes_of(name, self.random.randint(1, 8))


async def _operate(node: Node, model: Model) -> None:
    """One operation of a worker or an operator; the answers are judged."""
    spec, hashes = model.random.choice(_SPECS), model.sequence()
    match model.random.choices(("store", "load", "flush", "evict", "cool"), (40, 45, 3, 4, 8))[0]:
        case "store":
            stored = await node.store(spec, hashes)
            model.evicted.difference_update((spec.name, each) for each in stored)
        case "load":
            answer = await node.load(spec, hashes, patience_seconds=5)
            assert answer.wrong == []
            back = {(spec.name, each) for each in answer.right} & model.evicted
            assert not back, "what was evicted is there again"
            model.loads += len(answer.right)
        case "flush":
            try:
                await node.upkeep.flush(Tier.DISK)
            except KvtierError:
                assert node.stats().error_count or node.stats().state != TierState.ACTIVE
        case "evict":
            keys = hashes_of(f"{model.number}/{model.random.randrange(24)}", 8)
            try:
                await evict(node, spec.label, keys)
            except KvtierError:
                return  # they are gone, until the next restart at least
            finally:
                model.evicted.update((spec.name, each) for each in keys)
        case _:
            node.empty_host()


async def evict(node: Node, selector: str, hashes: Sequence[bytes]) -> None:
    keys = BlockKeys(Lane(), tuple(hashes))
    await node.upkeep.evict(selector, lambda _: keys, frozenset(Tier), dry_run=False)


async def _work(node: Node, models: Sequence[Model], operations: int) -> None:
    async def work(model: Model) -> None:
        for _ in range(operations // len(models)):
            await _operate(node, model)

    await asyncio.gather(*map(work, models))


async def until(condition: Callable[[], object], deadline_seconds: float) -> float:
    """Seconds until it held; the loop goes on meanwhile."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < deadline_seconds, f"not in {deadline_seconds} s"
        await asyncio.sleep(0.002)
    return time.monotonic() - started


async def until_active(node: Node) -> float:
    return await until(lambda: node.stats().state == TierState.ACTIVE, _BACK_SECONDS)


async def _phase(
    path: Path, models: Sequence[Model], faults: Mapping[Fault, float], random: Random
) -> None:
    """A life of an agent: it starts and works on a device with faults, which then heals."""
    io = FaultyIO(random, faults, slow_seconds=0.005)
    node = Node([path], _SIZES, io)
    await node.start()
    restarted = [each for each in models if each.evicted]
    for model in restarted:
        model.evicted.clear()  # an eviction that failed was one until the restart
    await _work(node, models, _OPERATIONS)
    io.heal()
    await until_active(node)
    await node.upkeep.flush(Tier.DISK)
    await _work(node, models, _OPERATIONS // 5)
    await node.upkeep.flush(Tier.DISK)
    await node.disk.writer.settled()
    node.audit()
    await node.stop()


@pytest.mark.timeout(600)
def test_operations_on_a_faulty_device_give_no_wrong_block(tmp_path: Path) -> None:
    random = Random(5)
    models = [Model(random, number) for number in range(_WORKERS)]
    phases = times(20_000) // _OPERATIONS
    for number in range(phases):
        faults = _PHASES[number % len(_PHASES)]
        before = len(os.listdir("/proc/self/fd"))
        run(lambda faults=faults: _phase(tmp_path, models, faults, random))  # type: ignore[misc]
        assert len(os.listdir("/proc/self/fd")) <= before
    assert sum(model.loads for model in models) > phases * _OPERATIONS // 4


def test_write_errors_degrade_it_and_healing_brings_it_back(tmp_path: Path) -> None:
    run(lambda: _degrade(tmp_path))


async def _degrade(path: Path) -> None:
    io = FaultyIO(Random(6))
    node = Node([path], _ROOMY, io)
    await node.start()
    early = await node.store(_SPECS[0], hashes_of("early", 16))
    await node.upkeep.flush(Tier.DISK)
    for number in range(times(5)):
        io.fail_writes(errno.EIO)
        late = await node.store(_SPECS[0], hashes_of(f"late {number}", 4))
        await until(lambda: node.stats().state == TierState.DEGRADED, 1.0)
        assert node.stats().reason
        with pytest.raises(KvtierError):
            await node.upkeep.flush(Tier.DISK)
        node.empty_host()
        answer = await node.load(_SPECS[0], early)
        assert answer.right == early, "what was flushed is read while it is DEGRADED"
        late = await node.store(_SPECS[0], late)
        io.heal()
        await until_active(node)
        await until(lambda late=late: _is_on_disk(node, late), _BACK_SECONDS)  # type: ignore[misc]
    node.audit()
    await node.stop()


def _is_on_disk(node: Node, hashes: Sequence[bytes]) -> bool:
    [disk] = node.session(_SPECS[0]).namespace.tiers[Tier.DISK]
    return -1 not in disk.find_many(Lane(), hashes)


def test_what_failed_to_be_written_is_written_after_healing(tmp_path: Path) -> None:
    async def main() -> None:
        io = FaultyIO(Random(7))
        node = Node([tmp_path], _ROOMY, io)
        await node.start()
        io.fail_writes(errno.EIO)
        stored = await node.store(_SPECS[0], hashes_of("once", 4))
        await until(lambda: node.stats().state == TierState.DEGRADED, 1.0)
        io.heal()
        await until_active(node)
        await until(lambda: _is_on_disk(node, stored), 5.0)
        await node.stop()

    run(main)


@pytest.mark.parametrize("call", ["write", "read"])
def test_a_hung_device_is_unavailable_and_host_is_served(tmp_path: Path, call: str) -> None:
    run(lambda: _hang(tmp_path, call))


async def _hang(path: Path, call: str) -> None:
    io = FaultyIO(Random(8))
    node = Node([path], _ROOMY, io)
    await node.start()
    cold = await node.store(_SPECS[0], hashes_of("cold", 16))
    await node.upkeep.flush(Tier.DISK)
    node.empty_host()
    warm = await node.store(_SPECS[0], hashes_of("warm", 16))
    await node.upkeep.flush(Tier.DISK)
    for number in range(times(5)):
        io.hang()
        if call == "write":
            await node.store(_SPECS[1], hashes_of(f"hung {number}", 4))
        else:
            assert (await node.load(_SPECS[0], cold)).right == []
        seconds = await until(lambda: node.stats().state == TierState.UNAVAILABLE, 2.0)
        assert seconds < 2 * _ROOMY.timeout_seconds
        assert (await node.load(_SPECS[0], warm)).right == warm
        assert (await node.load(_SPECS[0], cold)).right == []
        with pytest.raises(KvtierError):
            await node.upkeep.flush(Tier.DISK)
        io.heal()
        await until_active(node)
        assert (await node.load(_SPECS[0], cold)).right == cold
        node.empty_host()
        assert (await node.load(_SPECS[0], warm)).right == warm
        host = node.session(_SPECS[0]).namespace.groups[0]
        for row in reversed(host.find_many(Lane(), cold)):
            if row >= 0:
                host.forget(row)
    node.audit()
    await node.stop()


@pytest.mark.parametrize("call", ["write", "sync", "read", "allocate", "erase"])
def test_stopping_does_not_wait_for_a_hung_device(tmp_path: Path, call: str) -> None:
    run(lambda: _stop_hung(tmp_path, call))


async def _stop_hung(path: Path, call: str) -> None:
    io = FaultyIO(Random(9))
    node = Node([path], _ROOMY, io)
    await node.start()
    early = await node.store(_SPECS[0], hashes_of("early", 4))
    await node.upkeep.flush(Tier.DISK)
    if call == "sync":
        await node.store(_SPECS[0], hashes_of("more", 4))
        await node.disk.writer.settled()
    elif call == "write":
        await node.store(_SPECS[1], hashes_of("other", 1))
        await node.upkeep.flush(Tier.DISK)
    node.empty_host()
    io.hang()
    work = asyncio.create_task(_hung_call(node, call, early))
    await asyncio.to_thread(io.wait_for_hang)
    rescue = threading.Timer(10.0, io.heal)  # a test that would hang fails instead
    rescue.start()
    slabs = [slab for _, slab in node.disk.tier.all_slabs()]
    started = time.monotonic()
    await node.stop()
    seconds = time.monotonic() - started
    rescue.cancel()
    rescue.join()
    io.heal()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await until(lambda: not any("kvtier-disk" in t.name for t in threading.enumerate()), 5.0)
    for slab in slabs:
        slab.close()
    assert seconds < 5.0


async def _hung_call(node: Node, call: str, early: Sequence[bytes]) -> None:
    if call == "read":
        await node.load(_SPECS[0], early)
    elif call == "sync":
        await node.upkeep.flush(Tier.DISK)
    elif call == "erase":
        await evict(node, _SPECS[0].label, early)
    else:
        await node.store(_SPECS[1], hashes_of("hung", 2))


def test_a_failed_sync_loses_what_was_written_since_the_last(tmp_path: Path) -> None:
    run(lambda: _fail_sync(tmp_path))


async def _fail_sync(path: Path) -> None:
    io = FaultyIO(Random(10))
    node = Node([path], _ROOMY, io)
    await node.start()
    early = await node.store(_SPECS[0], hashes_of("early", 4))
    await node.upkeep.flush(Tier.DISK)
    late = []
    for number in range(8):  # the slab is there before the sync fails
        late += await node.store(_SPECS[0], hashes_of(f"late {number}", 4))
        await node.disk.writer.settled()
    node.empty_host()
    io.fail_syncs(errno.EIO, calls=1)
    with pytest.raises(KvtierError):
        await node.upkeep.flush(Tier.DISK)
    syncs = io.calls["sync"]
    await until_active(node)
    answer = await node.load(_SPECS[0], [*early, *late])
    assert set(early) <= set(answer.right)
    assert len(answer.missing) > 0
    assert io.calls["sync"] <= syncs + 4, "a failed sync is not tried again"
    await node.stop()


@pytest.mark.parametrize("fault", ["opens", "reads"])
def test_an_error_at_the_start_costs_what_it_befell_only(tmp_path: Path, fault: str) -> None:
    run(lambda: _start_with_error(tmp_path, fault))


async def _start_with_error(path: Path, fault: str) -> None:
    node = Node([path], _ROOMY)
    await node.start()
    stored = []
    for number in range(16):
        stored += await node.store(_SPECS[0], hashes_of(f"stored {number}", 8))
        await node.upkeep.flush(Tier.DISK)
    await node.stop()
    io = FaultyIO(Random(11))
    getattr(io, f"fail_{fault}")(errno.EIO, calls=1)
    node = Node([path], _ROOMY, io)
    await node.start()
    answer = await node.load(_SPECS[0], stored)
    assert answer.wrong == []
    assert len(answer.right) >= len(stored) // 3
    await until_active(node)
    fresh = await node.store(_SPECS[0], hashes_of("fresh", 4))
    await node.upkeep.flush(Tier.DISK)
    await node.stop()
    node = Node([path], _ROOMY)
    await node.start()
    assert (await node.load(_SPECS[0], fresh)).right == fresh
    await node.stop()


def test_growth_that_fails_leaves_no_descriptor(tmp_path: Path) -> None:
    async def main() -> None:
        io = FaultyIO(Random(12))
        node = Node([tmp_path], _ROOMY, io)
        await node.start()
        await node.store(_SPECS[0], hashes_of("first", 1))
        await node.upkeep.flush(Tier.DISK)
        for number in range(3):
            io.fail_syncs(errno.EIO)
            await node.store(_SPECS[0], hashes_of(f"more {number}", 8))
            await until(lambda: node.stats().state == TierState.DEGRADED, 2.0)
            await node.disk.writer.settled()
            io.heal()
            await until_active(node)
        assert _descriptors_of(tmp_path) <= 2 * len(node.disk.tier.all_slabs())
        await node.stop()

    run(main)


def _descriptors_of(path: Path) -> int:
    """Of slabs, deleted ones too."""
    links = [os.readlink(f"/proc/self/fd/{fd.name}") for fd in _own_descriptors()]
    return sum(str(path / "slab-") in link for link in links)


def _own_descriptors() -> list[Path]:
    return [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]


def test_a_flush_does_not_pass_over_a_write_that_hangs(tmp_path: Path) -> None:
    run(lambda: _flush_beside_hung_write(tmp_path))


async def _flush_beside_hung_write(path: Path) -> None:
    """One call hangs, the other threads go on, so that the device seems good now and then."""
    io = FaultyIO(Random(13))
    node = Node([path], _ROOMY, io)
    await node.start()
    await node.store(_SPECS[0], hashes_of("first", 4))
    await node.upkeep.flush(Tier.DISK)
    io.set_rates({Fault.HANG: 1.0})
    stored = await node.store(_SPECS[0], hashes_of("hung", 1))
    await asyncio.to_thread(io.wait_for_hang)
    io.set_rates({})
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and not _is_on_disk(node, stored):
        try:
            async with asyncio.timeout(1.0):
                await node.upkeep.flush(Tier.DISK)
        except (KvtierError, TimeoutError):
            await asyncio.sleep(0.005)
            continue
        assert _is_on_disk(node, stored), "flushed, and not on DISK"
    io.heal()
    await until_active(node)
    await node.upkeep.flush(Tier.DISK)
    assert _is_on_disk(node, stored)
    await node.stop()


def test_a_move_that_hangs_writes_to_no_slot_of_another_block(tmp_path: Path) -> None:
    run(lambda: _hang_a_move(tmp_path))


async def _hang_a_move(path: Path) -> None:
    """A slab is emptied for another class; the copy hangs, is given up, and goes on at last."""
    spec, io = _SPECS[0], FaultyIO(Random(14))
    node = Node([path], _ROOMY, io)
    await node.start()
    early = await node.store(spec, hashes_of("early", 8))
    await node.upkeep.flush(Tier.DISK)
    [disk] = node.session(spec).namespace.tiers[Tier.DISK]
    source = next(each for each in disk.extents if len(disk.live_slots(each)) == each.slots)
    for row in reversed(disk.find_many(Lane(), early)):  # room elsewhere
        if disk.residency.slot[row] not in disk.live_slots(source):
            disk.forget(row)
    kept = [each for each in early if disk.find_many(Lane(), [each]) != [-1]]
    sources = disk.live_slots(source)
    disk.withdraw(source)
    node.empty_host()
    io.set_rates({Fault.HANG: 1.0})
    move = asyncio.create_task(node.disk.placement._move(disk, sources))
    await asyncio.to_thread(io.wait_for_hang)
    io.set_rates({})
    await until(lambda: node.stats().state == TierState.UNAVAILABLE, 5.0)
    late: list[bytes] = []
    while not late or not _is_on_disk(node, late):  # it seems good for moments between two hangs
        await until_active(node)
        late += await node.store(spec, hashes_of(f"late {len(late)}", 4))
        await node.disk.writer.settled()
    io.heal()
    await asyncio.gather(move, return_exceptions=True)
    await until_active(node)
    await node.upkeep.flush(Tier.DISK)
    node.empty_host()
    answer = await node.load(spec, [*kept, *late])
    assert answer.wrong == []
    assert set(late) <= set(answer.right)
    await node.stop()

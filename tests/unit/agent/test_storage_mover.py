"""`agent.moving.storage_mover`: every call ends once, and a bad device is seen."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvtier.agent.moving.storage_mover import Kind, StorageDownError, StorageMover
from kvtier.tiers.disk.slab import NoRoomError
from kvtier.tiers.disk.volume import Volume
from kvtier.tiers.health import Health
from tests.unit.agent.disk_agent import (
    MIB,
    GatedIO,
    Messages,
    in_time,
    on_hurried_loop,
    on_loop,
    until,
)


class Door:
    """A call that does not return until it is opened."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> str:
        self._entered.set()
        self._opened.wait(10)
        return "through"

    def open(self) -> None:
        self._opened.set()

    async def entered(self) -> None:
        await until(self._entered.is_set)


class Ends:
    """What `on_end` was told, each time."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, result: object) -> None:
        self.seen.append(result)


def fail(number: int = errno.EIO) -> None:
    raise OSError(number, "it failed")


@asynccontextmanager
async def mover_on(
    path: Path, io: GatedIO | None = None, *, depth: int = 1, timeout_seconds: float = 10.0
) -> AsyncIterator[StorageMover[Volume]]:
    io = io or GatedIO()
    volume = Volume(io, path / "volume", MIB)
    mover = StorageMover(volume, name="disk-0", depth=depth, timeout_seconds=timeout_seconds)
    try:
        yield mover
    finally:
        io.let_pass()
        io.heal()
        await mover.close()
        volume.close()


@on_loop
async def test_a_call_is_answered_with_its_result(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        ends = Ends()
        assert await mover.run(divmod, 7, 2, on_end=ends) == (3, 1)
        assert ends.seen == [(3, 1)]
        assert mover.queue_depth == 0


@on_loop
async def test_reads_go_before_other_calls_and_those_before_writes(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        door, order = Door(), list[str]()
        first = asyncio.create_task(mover.run(door))
        await door.entered()
        calls = [
            asyncio.create_task(mover.run(order.append, f"{kind.name} {number}", kind=kind))
            for number in (1, 2)
            for kind in (Kind.WRITE, Kind.OTHER, Kind.READ)
        ]
        await until(lambda: mover.queue_depth == 7)
        door.open()
        await asyncio.gather(first, *calls)
        assert order == ["READ 1", "READ 2", "OTHER 1", "OTHER 2", "WRITE 1", "WRITE 2"]


@on_loop
async def test_calls_go_side_by_side_as_deep_as_the_volume_is(tmp_path: Path) -> None:
    async with mover_on(tmp_path, depth=3) as mover:
        doors = [Door() for _ in range(3)]
        calls = [asyncio.create_task(mover.run(door)) for door in doors]
        for door in doors:
            await door.entered()
        for door in doors:
            door.open()
        assert await asyncio.gather(*calls) == ["through"] * 3


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), ValueError("no")])
@on_loop
async def test_an_error_is_raised_and_ends_with_none(tmp_path: Path, error: Exception) -> None:
    def raising() -> None:
        raise error

    async with mover_on(tmp_path) as mover:
        ends = Ends()
        with pytest.raises(type(error), match="no"):
            await mover.run(raising, on_end=ends)
        assert ends.seen == [None]
        assert await mover.run(abs, -1) == 1


@on_loop
async def test_a_cancelled_call_ends_when_it_has_really_ended(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        door, ends = Door(), Ends()
        call = asyncio.create_task(mover.run(door, on_end=ends))
        await door.entered()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert ends.seen == []
        door.open()
        await until(lambda: ends.seen)
        assert await mover.run(abs, -1) == 1
        assert ends.seen == ["through"]


@on_loop
async def test_a_call_that_is_cancelled_before_it_began_does_nothing(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        door, ends, done = Door(), Ends(), list[int]()
        first = asyncio.create_task(mover.run(door))
        await door.entered()
        call = asyncio.create_task(mover.run(done.append, 1, on_end=ends, size_bytes=1 << 30))
        await until(lambda: mover.queue_depth == 2)
        call.cancel()
        door.open()
        await first
        await until(lambda: ends.seen)
        assert ends.seen == [None]
        assert done == []
        assert mover.health is Health.ACTIVE
        assert mover.error_count == 0


@on_loop
async def test_what_is_refused_ends_at_once(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.WRITE)
        ends, done = Ends(), list[int]()
        with pytest.raises(StorageDownError, match="failed"):
            await mover.run(done.append, 1, kind=Kind.WRITE, on_end=ends)
        assert (ends.seen, done) == ([None], [])
        assert await mover.run(abs, -1, kind=Kind.READ) == 1


@on_loop
async def test_a_call_without_an_answer_is_given_up_and_ends_later(tmp_path: Path) -> None:
    async with mover_on(tmp_path, timeout_seconds=0.05) as mover:
        door, ends, behind = Door(), Ends(), Ends()
        calls = [
            asyncio.create_task(mover.run(door, on_end=ends)),
            asyncio.create_task(mover.run(abs, -1, on_end=behind)),
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in answers] == [StorageDownError] * 2
        assert mover.health is Health.UNAVAILABLE
        assert (ends.seen, behind.seen) == ([], [])
        assert mover.queue_depth == 2
        with pytest.raises(StorageDownError, match="no answer"):
            await mover.run(abs, -1, kind=Kind.READ)
        door.open()
        await until(lambda: not mover.queue_depth)
        assert (ends.seen, behind.seen) == (["through"], [None])


@on_loop
async def test_a_long_queue_is_no_silence(tmp_path: Path) -> None:
    """Only what a thread has in its hands counts; each call here is quick."""
    async with mover_on(tmp_path, timeout_seconds=0.2) as mover:
        pause = threading.Event()
        calls = [mover.run(pause.wait, 0.01, kind=Kind.READ) for _ in range(40)]
        await asyncio.gather(*calls)
        assert mover.health is Health.ACTIVE


@on_loop
async def test_calls_that_wait_at_the_end_are_done(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        door, ends = Door(), Ends()
        calls = [asyncio.create_task(mover.run(door, on_end=ends))]
        await door.entered()
        calls += [asyncio.create_task(mover.run(abs, -n, on_end=ends)) for n in (1, 2)]
        await until(lambda: mover.queue_depth == 3)
        door.open()
        await mover.close()
        assert await in_time(asyncio.gather(*calls)) == ["through", 1, 2]
        assert ends.seen == ["through", 1, 2]


@on_loop
async def test_a_thread_that_hangs_is_left_behind(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        door, ends = Door(), Ends()
        call = asyncio.create_task(mover.run(door, on_end=ends))
        await door.entered()
        assert not await mover.close()
        door.open()
        await until(lambda: not any(thread.is_alive() for thread in mover.threads))
        assert not call.done()
        call.cancel()
        assert ends.seen == []  # the books are closed


# Health.


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.OTHER])
@on_loop
async def test_a_failed_write_degrades(tmp_path: Path, kind: Kind) -> None:
    async with mover_on(tmp_path) as mover:
        with Messages() as messages:
            for _ in range(2):
                with pytest.raises(OSError, match="failed"):
                    await mover.run(fail, kind=kind)
        assert mover.health is Health.DEGRADED
        assert (mover.is_readable, mover.is_writable) == (True, False)
        assert mover.reason == "it failed"
        assert messages.about("is DEGRADED: it failed") == 1
        assert mover.error_count == (1 if kind is Kind.WRITE else 2)


@pytest.mark.parametrize(
    ("error", "errors"),
    [(OSError(errno.EIO, "no"), 1), (NoRoomError(errno.ENOSPC, "no"), 0), (ValueError("no"), 0)],
)
@on_loop
async def test_other_failures_do_not_degrade(tmp_path: Path, error: Exception, errors: int) -> None:
    def raising() -> None:
        raise error

    async with mover_on(tmp_path) as mover:
        kind = Kind.WRITE if not errors else Kind.READ
        with pytest.raises(type(error)):
            await mover.run(raising, kind=kind)
        assert mover.health is Health.ACTIVE
        assert mover.error_count == errors


@on_loop
async def test_little_free_space_degrades_before_a_write(tmp_path: Path) -> None:
    volume = Volume(GatedIO(), tmp_path / "volume", MIB, min_free_bytes=1 << 60)
    mover = StorageMover(volume, name="disk-0", depth=1, timeout_seconds=10)
    done: list[int] = []
    with pytest.raises(OSError, match="min_free"):
        await mover.run(done.append, 1, kind=Kind.WRITE)
    assert (mover.health, done) == (Health.DEGRADED, [])
    assert "min_free" in mover.reason
    await mover.close()
    volume.close()


def goods(mover: StorageMover[Volume]) -> list[int]:
    """Grows with each time that the volume is good again."""
    seen: list[int] = []

    def note() -> None:
        if mover.is_writable:
            seen.append(1)

    mover.on_turn = note
    return seen


@on_hurried_loop
async def test_a_probe_that_succeeds_makes_it_good_again(tmp_path: Path) -> None:
    io = GatedIO()
    async with mover_on(tmp_path, io) as mover:
        seen = goods(mover)
        io.fail_syncs(errno.EROFS, calls=2)
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.WRITE)
        with Messages() as messages:
            await until(lambda: mover.is_writable)
        assert io.calls["sync"] == 3
        assert messages.about("good again") == 1
        assert (seen, mover.reason) == ([1], "")
        assert await mover.run(abs, -1, kind=Kind.WRITE) == 1


@on_hurried_loop
async def test_the_reason_is_that_of_the_last_probe(tmp_path: Path) -> None:
    io = GatedIO()
    async with mover_on(tmp_path, io) as mover:
        io.fail_syncs(errno.EROFS)
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.WRITE)
        await until(lambda: "Read-only" in mover.reason)
        assert mover.health is Health.DEGRADED


@on_hurried_loop
async def test_a_volume_that_hung_is_good_again_when_it_answers(tmp_path: Path) -> None:
    io = GatedIO()
    async with mover_on(tmp_path, io, depth=2, timeout_seconds=0.05) as mover:
        seen = goods(mover)
        io.hang()
        with pytest.raises(StorageDownError):
            await mover.run(mover.storage.probe)
        await until(lambda: mover.health is Health.UNAVAILABLE)
        io.heal()
        await until(lambda: mover.is_writable)
        assert seen == [1]
        assert await mover.run(abs, -1) == 1


@on_hurried_loop
async def test_a_degraded_volume_that_falls_silent_is_unavailable(tmp_path: Path) -> None:
    async with mover_on(tmp_path, timeout_seconds=0.05) as mover:
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.WRITE)
        door = Door()
        with pytest.raises(StorageDownError):
            await mover.run(door, kind=Kind.READ)
        assert mover.health is Health.UNAVAILABLE
        door.open()
        await until(lambda: mover.is_writable)


@on_hurried_loop
async def test_one_call_that_never_returns_is_counted_once(tmp_path: Path) -> None:
    """The device answers others: its other threads go on, and their calls are not given up."""
    async with mover_on(tmp_path, depth=2, timeout_seconds=0.05) as mover:
        door = Door()
        with pytest.raises(StorageDownError):
            await mover.run(door, kind=Kind.READ)
        pause = threading.Event()
        try:
            await until(lambda: mover.is_writable, seconds=1)
            for _ in range(20):
                await mover.run(pause.wait, 0.01, kind=Kind.READ)
            assert mover.health is Health.ACTIVE
        finally:
            door.open()


@on_hurried_loop
async def test_no_probe_is_left_at_the_end(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.WRITE)
    assert len(asyncio.all_tasks()) == 1


# Estimates.


@on_loop
async def test_estimates_grow_with_size_and_with_what_waits(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        sizes = [0, 1, 1 << 10, 1 << 20, 1 << 30]
        before = [mover.forecast.seconds_until_read(size) for size in sizes]
        assert before == sorted(before)
        assert before[0] > 0
        door = Door()
        calls = [asyncio.create_task(mover.run(door, kind=Kind.READ, size_bytes=1 << 20))]
        await door.entered()
        busy = [mover.forecast.seconds_until_read(size) for size in sizes]
        assert all(b > a for a, b in zip(before, busy, strict=True))
        calls.append(asyncio.create_task(mover.run(abs, -1, kind=Kind.READ, size_bytes=1 << 20)))
        await until(lambda: mover.queue_depth == 2)
        assert mover.forecast.seconds_until_read(0) > busy[0]
        door.open()
        await asyncio.gather(*calls)


@on_loop
async def test_estimates_follow_what_was_measured(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        before, pause = mover.forecast.seconds_until_read(1 << 20), threading.Event()
        for _ in range(12):
            await mover.run(pause.wait, 0.005, kind=Kind.READ, size_bytes=1 << 20)
        assert mover.forecast.seconds_until_read(1 << 20) > 0.0045 > before
        assert mover.read_bytes == 12 << 20


@on_loop
async def test_writes_and_failures_are_no_measure_of_reads(tmp_path: Path) -> None:
    async with mover_on(tmp_path) as mover:
        before = mover.forecast.seconds_until_read(1 << 20)
        pause = threading.Event()
        await mover.run(pause.wait, 0.01, kind=Kind.WRITE, size_bytes=1 << 20)
        with pytest.raises(OSError, match="failed"):
            await mover.run(fail, kind=Kind.READ, size_bytes=1 << 30)
        assert mover.forecast.seconds_until_read(1 << 20) == before
        assert (mover.read_bytes, mover.written_bytes) == (0, 1 << 20)


@on_loop
async def test_an_estimate_is_never_below_zero(tmp_path: Path) -> None:
    """The loop hears of two ends in the order of the threads' luck."""

    async with mover_on(tmp_path, depth=2) as mover:
        # What `_work` does, with an interruption between its clock and its call of the loop.
        for late, size_bytes in ((1.0, 1 << 20), (0.0, 4096)):
            job = mover._submit(lambda: None, size_bytes, Kind.READ)
            await job.answer
            mover._measure(job, job.started_at + late)
        assert mover.forecast.seconds_until_read(1 << 30) > 0

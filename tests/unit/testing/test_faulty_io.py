"""Behaviour of `kvtier.testing.FaultyIO`: what it does to real files, and what it counts."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.memory import ByteArray
from kvtier.testing import Fault, FaultyIO
from kvtier.tiers.disk.io import (
    ALIGNMENT_BYTES,
    MAX_FRUITLESS_CALLS,
    BlockIO,
    open_direct,
    read_fully,
    write_fully,
)

PAGE = ALIGNMENT_BYTES
SIZE = 8 * PAGE
IO = BlockIO()
DEVICE_ERRNOS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def aligned(size_bytes: int, value: int = 0) -> ByteArray:
    memory = np.full(size_bytes + PAGE, value, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size_bytes]


@pytest.fixture(params=["direct", "buffered"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A file of SIZE bytes, all 1."""
    path = tmp_path / "slab"
    path.write_bytes(b"\x01" * SIZE)
    if request.param == "direct":
        fd, is_direct = open_direct(IO, path, os.O_RDWR)
        if not is_direct:
            IO.close(fd)
            pytest.skip(f"the file system of {tmp_path} refuses O_DIRECT")
    else:
        fd = IO.open(path, os.O_RDWR)
    yield fd
    IO.close(fd)


def faulty(rates: dict[Fault, float] | None = None, seed: int = 1) -> FaultyIO:
    return FaultyIO(Random(seed), rates)


def contents(fd: int) -> ByteArray:
    return np.frombuffer(Path(f"/proc/self/fd/{fd}").read_bytes(), np.uint8)


Call = Callable[[FaultyIO, int], object]
CALLS: dict[str, Call] = {
    "read": lambda io, fd: io.read(fd, [aligned(SIZE)], 0),
    "write": lambda io, fd: io.write(fd, [aligned(SIZE)], 0),
    "allocate": lambda io, fd: io.allocate(fd, 2 * SIZE),
    "sync": lambda io, fd: io.sync(fd),
}


def error_of(call: Call, io: FaultyIO, fd: int) -> int:
    """Its errno, 0 for none."""
    try:
        call(io, fd)
    except OSError as error:
        return error.errno or -1
    return 0


def test_without_faults_it_is_the_real_thing(tmp_path: Path) -> None:
    io, path = faulty(), tmp_path / "slab"
    fd = io.open(path, os.O_RDWR | os.O_CREAT)
    io.allocate(fd, SIZE)
    write_fully(io, fd, [aligned(SIZE, 7)], 0)
    io.sync(fd)
    target = aligned(SIZE)
    read_fully(io, fd, [target], 0)
    io.close(fd)
    io.rename(path, tmp_path / "other")
    io.sync_directory(tmp_path)
    assert io.free_bytes(tmp_path) > 0
    io.unlink(tmp_path / "other")
    assert bytes(target) == b"\x07" * SIZE
    assert list(tmp_path.iterdir()) == []
    names = {name for name in vars(BlockIO) if not name.startswith("_")}
    assert io.calls == dict.fromkeys(names, 1)
    assert not io.injected


@pytest.mark.parametrize(
    ("name", "fault", "errnos"),
    [
        ("read", Fault.READ_ERROR, {errno.EIO}),
        ("read", Fault.INTERRUPTION, {errno.EINTR}),
        ("write", Fault.WRITE_ERROR, DEVICE_ERRNOS),
        ("write", Fault.INTERRUPTION, {errno.EINTR}),
        ("allocate", Fault.ALLOCATE_ERROR, DEVICE_ERRNOS),
        ("sync", Fault.SYNC_ERROR, DEVICE_ERRNOS),
    ],
)
def test_errors_come_at_their_rate_and_change_nothing(
    fd: int, name: str, fault: Fault, errnos: set[int]
) -> None:
    io = faulty({fault: 1.0})
    assert {error_of(CALLS[name], io, fd) for _ in range(50)} == errnos
    assert io.injected == {fault: 50}
    assert bytes(contents(fd)) == b"\x01" * SIZE
    io.set_rates({fault: 0.5})
    failed = sum(error_of(CALLS[name], io, fd) != 0 for _ in range(50))
    assert 10 < failed < 40
    assert io.injected == {fault: 50 + failed}
    assert io.calls == {name: 100}


def test_errors_of_opening_come_at_their_rate(tmp_path: Path) -> None:
    io = faulty({Fault.OPEN_ERROR: 1.0})
    with pytest.raises(OSError, match="injected"):
        io.open(tmp_path / "slab", os.O_CREAT)
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_brings_the_same_faults(fd: int) -> None:
    def run(seed: int) -> list[int]:
        io = faulty({Fault.WRITE_ERROR: 0.3, Fault.INTERRUPTION: 0.3}, seed)
        return [error_of(CALLS["write"], io, fd) for _ in range(30)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_switches_fail_calls_until_it_is_healed(fd: int) -> None:
    io = faulty()
    io.fail_reads(errno.EIO)
    io.fail_writes(errno.ENOSPC)
    io.fail_allocations(errno.EDQUOT)
    io.fail_syncs(errno.EROFS)
    errors = [error_of(call, io, fd) for call in CALLS.values()]
    assert errors == [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS]
    assert io.injected.total() == 4
    io.heal()
    assert [error_of(call, io, fd) for call in CALLS.values()] == [0] * 4
    assert io.injected.total() == 4


def test_a_switch_may_fail_so_many_calls(fd: int) -> None:
    io = faulty()
    io.fail_syncs(errno.EIO, calls=2)
    assert [error_of(CALLS["sync"], io, fd) for _ in range(4)] == [errno.EIO, errno.EIO, 0, 0]
    io.fail_syncs(errno.EIO)
    io.fail_syncs(errno.EIO, calls=0)
    assert error_of(CALLS["sync"], io, fd) == 0


def test_directories_and_opens_fail_by_switch(tmp_path: Path) -> None:
    io = faulty()
    io.fail_syncs(errno.EIO)
    io.fail_opens(errno.EMFILE, calls=1)
    with pytest.raises(OSError, match="injected"):
        io.sync_directory(tmp_path)
    with pytest.raises(OSError, match="Too many open files"):
        io.open(tmp_path, os.O_RDONLY)
    io.close(io.open(tmp_path, os.O_RDONLY))


def test_short_reads_report_what_is_right_and_spoil_the_rest(fd: int) -> None:
    io = faulty({Fault.SHORT_READ: 1.0})
    sizes = set()
    for _ in range(50):
        target = aligned(SIZE, 9)
        moved = io.read(fd, [target[:PAGE], target[PAGE:]], 0)
        assert 0 < moved < SIZE
        assert (target[:moved] == 1).all()
        assert not (target[moved:] == 1).any()
        sizes.add(moved)
    assert len(sizes) > 10
    assert io.injected == {Fault.SHORT_READ: 50}


def test_short_writes_write_at_least_what_they_report(fd: int) -> None:
    io = faulty({Fault.SHORT_WRITE: 1.0})
    for value in range(2, 52):
        before = contents(fd)
        moved = io.write(fd, [aligned(PAGE, value), aligned(SIZE - PAGE, value)], 0)
        after = contents(fd)
        assert 0 < moved < SIZE
        assert (after[:moved] == value).all()
        assert np.array_equal(after[moved + PAGE :], before[moved + PAGE :])
    assert io.injected == {Fault.SHORT_WRITE: 50}


def test_a_transfer_of_one_byte_is_never_short(fd: int) -> None:
    io = faulty({Fault.SHORT_READ: 1.0})
    os.ftruncate(fd, PAGE)
    other = IO.open(Path(f"/proc/self/fd/{fd}"), os.O_RDONLY)
    assert io.read(other, [aligned(1)], 0) == 1
    assert io.read(other, [aligned(2)], PAGE) == 0
    IO.close(other)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_full_transfers_come_through_short_and_interrupted_calls(fd: int, seed: int) -> None:
    rates = {Fault.SHORT_READ: 0.7, Fault.SHORT_WRITE: 0.7, Fault.INTERRUPTION: 0.2}
    io = faulty(rates, seed)
    source, target = aligned(SIZE), aligned(SIZE)
    source[:] = np.frombuffer(Random(seed).randbytes(SIZE), np.uint8)
    parts = [slice(0, PAGE), slice(PAGE, 4 * PAGE), slice(4 * PAGE, SIZE)]
    try:
        write_fully(io, fd, [source[part] for part in parts], 0)
        read_fully(io, fd, [target[part] for part in parts], 0)
    except OSError:
        # So many in a row that brought it no further: seldom, and no other error is possible.
        assert io.injected.total() >= MAX_FRUITLESS_CALLS
        return
    assert np.array_equal(source, target)


def test_a_flipped_bit_is_one_bit_and_no_error(fd: int) -> None:
    io = faulty({Fault.BIT_FLIP: 1.0})
    for _ in range(20):
        target = aligned(SIZE)
        assert io.read(fd, [target[:PAGE], target[PAGE:]], 0) == SIZE
        assert np.unpackbits(target ^ np.uint8(1)).sum() == 1
    assert (contents(fd) == 1).all()
    assert io.injected == {Fault.BIT_FLIP: 20}


def test_a_torn_write_fails_and_leaves_a_part(fd: int) -> None:
    io = faulty({Fault.TORN_WRITE: 1.0})
    written = []
    for value in range(2, 52):
        before = contents(fd)
        with pytest.raises(OSError, match="torn") as caught:
            io.write(fd, [aligned(PAGE, value), aligned(SIZE - PAGE, value)], 0)
        assert caught.value.errno == errno.EIO
        after = contents(fd)
        assert np.array_equal(after[after != value], before[after != value])
        written.append(int((after == value).sum()))
    assert min(written) < SIZE // 4
    assert SIZE // 2 < max(written) < SIZE
    assert io.injected == {Fault.TORN_WRITE: 50}


def test_slow_calls_sleep_and_then_do_their_work(fd: int) -> None:
    slept: list[float] = []
    io = FaultyIO(Random(1), {Fault.SLOW_CALL: 1.0}, slow_seconds=2.5, sleep=slept.append)
    for call in CALLS.values():
        call(io, fd)
    assert slept == [2.5] * 4
    assert (contents(fd)[:SIZE] == 0).all()
    assert io.injected == {Fault.SLOW_CALL: 4}


@pytest.mark.parametrize("is_switched", [True, False])
def test_hanging_calls_go_on_when_it_is_healed(fd: int, is_switched: bool) -> None:
    io = faulty({} if is_switched else {Fault.HANG: 1.0})
    if is_switched:
        io.hang()
    with ThreadPoolExecutor(len(CALLS)) as threads:
        try:
            calls = [threads.submit(call, io, fd) for call in CALLS.values()]
            io.wait_for_hang(len(CALLS))
            assert not any(call.done() for call in calls)
            assert (contents(fd) == 1).all()
        finally:
            io.heal()
        assert calls[1].result() == SIZE
        assert all(call.exception() is None for call in calls)
    assert io.injected == {Fault.HANG: len(CALLS)}
    assert CALLS["read"](io, fd) == SIZE


def test_it_can_hang_again_after_it_was_healed(fd: int) -> None:
    io = faulty()
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            io.hang()
            try:
                calls = [threads.submit(CALLS["sync"], io, fd) for _ in range(3)]
                io.wait_for_hang(3)
            finally:
                io.heal()
            assert [call.result() for call in calls] == [None] * 3
    with pytest.raises(TimeoutError, match="0 calls hang, not 1"):
        io.wait_for_hang(deadline_seconds=0.0)


def test_a_switch_thrown_during_a_hang_is_healed_too(fd: int) -> None:
    io = faulty()
    io.hang()
    with ThreadPoolExecutor(1) as threads:
        try:
            call = threads.submit(error_of, CALLS["write"], io, fd)
            io.wait_for_hang()
            io.fail_writes(errno.EIO)
        finally:
            io.heal()
        assert call.result() == 0


def test_a_descriptor_can_be_closed_while_the_device_hangs(tmp_path: Path) -> None:
    io = faulty()
    fd = io.open(tmp_path / "slab", os.O_RDWR | os.O_CREAT)
    io.hang()
    io.close(fd)
    assert io.calls["close"] == 1


def test_many_threads_are_counted_right(fd: int) -> None:
    io = faulty({Fault.WRITE_ERROR: 0.3, Fault.SHORT_WRITE: 0.3, Fault.READ_ERROR: 0.3})

    def work(_: int) -> int:
        return sum(error_of(CALLS[name], io, fd) != 0 for name in ("read", "write") * 25)

    with ThreadPoolExecutor(8) as threads:
        failed = sum(threads.map(work, range(8)))
    assert io.calls == {"read": 200, "write": 200}
    assert io.injected[Fault.WRITE_ERROR] + io.injected[Fault.READ_ERROR] == failed
    assert io.injected[Fault.SHORT_WRITE] > 0


def test_a_slow_device_moves_so_much_a_second_for_all_together(fd: int) -> None:
    io = faulty()
    io.slow_down(latency_seconds=0.02, bytes_per_second=1e6)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: io.read(fd, [aligned(4 * PAGE)], 0), range(4)))
    assert time.monotonic() - began >= 0.02 + 16 * PAGE / 1e6


def test_who_waits_for_a_slow_device_goes_on_when_it_is_healed(fd: int) -> None:
    io = faulty()
    io.slow_down(latency_seconds=60.0)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(error_of, CALLS["read"], io, fd)
        while not io.calls["read"]:
            time.sleep(0.001)
        io.heal()
        assert call.result(10.0) == 0
    began = time.monotonic()
    assert error_of(CALLS["read"], io, fd) == 0
    assert time.monotonic() - began < 30.0

"""Behaviour of `kvtier.tiers.disk.io` on real files: direct, through the page cache, on tmpfs."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier import memory
from kvtier.memory import ByteArray
from kvtier.tiers.disk.io import (
    ALIGNMENT_BYTES,
    MAX_FRUITLESS_CALLS,
    BlockIO,
    open_direct,
    read_fully,
    stretch,
    write_fully,
)

PAGE = ALIGNMENT_BYTES
FILE_BYTES = 24 * PAGE
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
IO = BlockIO()
#: What a call does: None is EINTR, a number the most bytes that it reports.
Step = int | None


class StepwiseIO(BlockIO):
    """Follows its steps, then moves all that is wanted; notes sizes and judges alignment."""

    def __init__(self, steps: Sequence[Step] = (), *, endless: Step = -1) -> None:
        self.steps = list(steps)
        self.endless = endless
        self.wanted: list[int] = []

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        limit = self._next(fd, buffers, offset)
        moved = super().read(fd, buffers, offset)
        if 0 <= limit < moved:
            for view in stretch(buffers, limit):
                view[:] = 0xEE
        return moved if limit < 0 else min(limit, moved)

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        limit = self._next(fd, buffers, offset)
        if limit < 0:
            return super().write(fd, buffers, offset)
        end = limit + (-limit % PAGE if is_direct(fd) else 0)
        part = stretch(buffers, 0, end)
        return min(limit, super().write(fd, part, offset)) if part else 0

    def _next(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        views = stretch(buffers, 0)
        self.wanted.append(sum(view.size for view in views))
        if is_direct(fd):  # this device may be content with less than others
            assert offset % PAGE == 0
            assert all(view.ctypes.data % PAGE == 0 and view.size % PAGE == 0 for view in views)
        step = self.steps.pop(0) if self.steps else self.endless
        if step is None:
            raise InterruptedError(errno.EINTR, "interrupted")
        return step


class RefusingIO(BlockIO):
    """A file system without O_DIRECT, that says so when it opens a file or when it is read."""

    def __init__(self, number: int, *, refuses_open: bool) -> None:
        self.number = number
        self.refuses_open = refuses_open

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        if self.refuses_open and flags & os.O_DIRECT:
            os.close(fd)  # the kernel too has created the file by then
            raise OSError(self.number, "no O_DIRECT")
        return fd

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        if is_direct(fd):
            raise OSError(self.number, "no O_DIRECT")
        return super().read(fd, buffers, offset)


def is_direct(fd: int) -> bool:
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return bool(int(info.partition("flags:")[2].split()[0], 8) & os.O_DIRECT)


@pytest.fixture(params=["direct", "buffered", "tmpfs"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A new file, in each of the ways that files are used."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        path = Path(shared if request.param == "tmpfs" else tmp_path) / "slab"
        if request.param == "buffered":
            fd = IO.open(path, CREATE)
        else:
            fd, direct = open_direct(IO, path, CREATE)
            if request.param == "direct" and not direct:
                IO.close(fd)
                pytest.skip(f"the file system of {tmp_path} refuses O_DIRECT")
        yield fd
        IO.close(fd)


@pytest.fixture
def buffered(tmp_path: Path) -> Iterator[int]:
    fd = IO.open(tmp_path / "table", CREATE)
    yield fd
    IO.close(fd)


def aligned(size_bytes: int) -> ByteArray:
    fd = memory.create_memfd("test", size_bytes)
    try:
        return memory.map_shared(fd, size_bytes, writable=True)
    finally:
        os.close(fd)


def pattern(size_bytes: int, seed: int) -> ByteArray:
    array = aligned(size_bytes)
    array[:] = np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)
    return array


def cut(array: ByteArray, sizes: Sequence[int]) -> list[ByteArray]:
    ends = np.cumsum(sizes)
    return [array[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def contents(fd: int) -> bytes:
    return Path(f"/proc/self/fd/{fd}").read_bytes()


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Calls that bring a transfer no further, as many as are allowed in a row, and others."""
    fruitless = st.lists(st.none() | st.integers(1, PAGE - 1), max_size=MAX_FRUITLESS_CALLS - 1)
    fruitful = st.integers(PAGE, 4 * PAGE)
    found: list[Step] = []
    for _ in range(draw(st.integers(0, 5))):
        found += draw(fruitless)
        found.append(draw(fruitful))
    return found + draw(fruitless)


each_example_writes_the_whole_file = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pages = st.lists(st.integers(0, 4).map(lambda count: count * PAGE), max_size=5)
SOURCE, OLD = pattern(FILE_BYTES, 1), pattern(FILE_BYTES, 2)


@each_example_writes_the_whole_file
@given(sizes=pages, offset=st.integers(0, 4).map(lambda page: page * PAGE), steps=steps())
def test_pages_are_read_whole_however_calls_are_cut_short(
    fd: int, sizes: list[int], offset: int, steps: list[Step]
) -> None:
    write_fully(IO, fd, [SOURCE], 0)
    target, end = aligned(FILE_BYTES), sum(sizes)
    target[:] = OLD
    read_fully(StepwiseIO(steps), fd, cut(target, sizes), offset)
    assert np.array_equal(target[:end], SOURCE[offset : offset + end])
    assert np.array_equal(target[end:], OLD[end:])


@each_example_writes_the_whole_file
@given(sizes=pages, offset=st.integers(0, 4).map(lambda page: page * PAGE), steps=steps())
def test_pages_are_written_whole_however_calls_are_cut_short(
    fd: int, sizes: list[int], offset: int, steps: list[Step]
) -> None:
    write_fully(IO, fd, [OLD], 0)
    end = offset + sum(sizes)
    write_fully(StepwiseIO(steps), fd, cut(SOURCE, sizes), offset)
    expected = bytes(OLD[:offset]) + bytes(SOURCE[: sum(sizes)]) + bytes(OLD[end:])
    assert contents(fd) == expected


any_sizes = st.lists(st.integers(0, 3 * PAGE) | st.sampled_from([0, 1, PAGE]), max_size=5)


@each_example_writes_the_whole_file
@given(sizes=any_sizes, offset=st.integers(0, 2 * PAGE), steps=steps())
def test_bytes_are_read_whole_however_calls_are_cut_short(
    buffered: int, sizes: list[int], offset: int, steps: list[Step]
) -> None:
    write_fully(IO, buffered, [SOURCE], 0)
    target, end = OLD.copy(), sum(sizes)
    read_fully(StepwiseIO(steps), buffered, cut(target, sizes), offset)
    assert np.array_equal(target[:end], SOURCE[offset : offset + end])
    assert np.array_equal(target[end:], OLD[end:])


@each_example_writes_the_whole_file
@given(sizes=any_sizes, offset=st.integers(0, 2 * PAGE), steps=steps())
def test_bytes_are_written_whole_however_calls_are_cut_short(
    buffered: int, sizes: list[int], offset: int, steps: list[Step]
) -> None:
    write_fully(IO, buffered, [OLD], 0)
    source: list[ByteArray | bytes] = list(cut(SOURCE, sizes))
    source[::2] = [bytes(each) for each in source[::2]]
    end = offset + sum(sizes)
    write_fully(StepwiseIO(steps), buffered, source, offset)
    expected = bytes(OLD[:offset]) + bytes(SOURCE[: sum(sizes)]) + bytes(OLD[end:])
    assert contents(buffered) == expected


@pytest.mark.parametrize(("offset", "size_bytes"), [(0, PAGE - 1), (1, PAGE)])
def test_what_cannot_be_direct_goes_on_from_the_byte(
    buffered: int, offset: int, size_bytes: int
) -> None:
    target = aligned(size_bytes)
    write_fully(StepwiseIO(endless=64), buffered, [SOURCE[:size_bytes]], offset)
    read_fully(StepwiseIO(endless=64), buffered, [target], offset)
    assert np.array_equal(target, SOURCE[:size_bytes])


def test_a_transfer_takes_one_call(fd: int) -> None:
    io = StepwiseIO()
    write_fully(io, fd, cut(SOURCE, [PAGE] * 8), 0)
    read_fully(io, fd, cut(aligned(8 * PAGE), [PAGE] * 8), 0)
    assert io.wanted == [8 * PAGE, 8 * PAGE]


def test_more_buffers_than_the_kernel_takes_are_split(fd: int) -> None:
    count = 2 * 1024 + 1
    source, target = pattern(count * PAGE, 3), aligned(count * PAGE)
    io = StepwiseIO()
    write_fully(io, fd, cut(source, [PAGE] * count), PAGE)
    read_fully(io, fd, cut(target, [PAGE] * count), PAGE)
    assert io.wanted == 2 * [1024 * PAGE, 1024 * PAGE, PAGE]
    assert np.array_equal(source, target)


def test_nothing_to_move_takes_no_call(fd: int) -> None:
    io = StepwiseIO()
    write_fully(io, fd, [], 0)
    read_fully(io, fd, [aligned(PAGE)[:0]], 0)
    assert io.wanted == []


def test_a_row_of_slots_is_one_buffer(fd: int) -> None:
    slots, target = SOURCE[: 8 * PAGE].reshape(4, 2 * PAGE), aligned(8 * PAGE)
    write_fully(StepwiseIO([PAGE + 1]), fd, [slots[:3], slots[3]], 0)
    read_fully(StepwiseIO([3 * PAGE + 1]), fd, [target.reshape(2, 4 * PAGE)], 0)
    assert np.array_equal(target, SOURCE[: 8 * PAGE])


def test_buffers_with_gaps_are_refused(fd: int) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        write_fully(IO, fd, [SOURCE[::2]], 0)


@pytest.mark.parametrize("size_bytes", [0, PAGE, 2 * PAGE - 512])
def test_the_end_of_the_file_is_an_error(fd: int, size_bytes: int) -> None:
    os.ftruncate(fd, size_bytes)
    io = StepwiseIO()
    with pytest.raises(OSError, match="move") as caught:
        read_fully(io, fd, [aligned(2 * PAGE)], 0)
    assert caught.value.errno == errno.EIO
    assert len(io.wanted) <= MAX_FRUITLESS_CALLS + 1


Transfer = Callable[[BlockIO, int, list[ByteArray], int], None]


def read_back(io: BlockIO, fd: int, buffers: list[ByteArray], offset: int) -> None:
    write_fully(IO, fd, buffers, offset)
    read_fully(io, fd, buffers, offset)


@pytest.mark.parametrize("transfer", [read_back, write_fully])
@pytest.mark.parametrize(
    ("step", "calls"), [(None, MAX_FRUITLESS_CALLS), (PAGE - 1, MAX_FRUITLESS_CALLS), (0, 1)]
)
def test_a_transfer_that_gets_no_further_is_given_up(
    fd: int, transfer: Transfer, step: Step, calls: int
) -> None:
    io = StepwiseIO([PAGE], endless=step)
    with pytest.raises(OSError, match="move") as caught:
        transfer(io, fd, [aligned(4 * PAGE)], 0)
    assert caught.value.errno == errno.EIO
    assert io.wanted == [4 * PAGE] + [3 * PAGE] * calls


def test_an_error_of_the_device_is_passed_on() -> None:
    fd = IO.open(Path("/dev/full"), os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No space") as caught:
            write_fully(IO, fd, [SOURCE], 0)
    finally:
        IO.close(fd)
    assert caught.value.errno == errno.ENOSPC


def test_files_belong_to_their_user_and_not_to_children(tmp_path: Path) -> None:
    fd = IO.open(tmp_path / "slab", CREATE)
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    IO.close(fd)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("refuses_open", [True, False])
def test_what_refuses_direct_files_is_opened_without(
    tmp_path: Path, number: int, refuses_open: bool
) -> None:
    fd, direct = open_direct(
        RefusingIO(number, refuses_open=refuses_open), tmp_path / "slab", CREATE
    )
    assert not direct
    assert not is_direct(fd)
    IO.close(fd)


def test_a_real_file_system_that_refuses_direct_files() -> None:
    fd, direct = open_direct(IO, Path("/proc/self/stat"), os.O_RDONLY)
    assert not direct
    IO.close(fd)


def test_a_bad_first_block_is_left_to_its_readers(tmp_path: Path) -> None:
    fd, _ = open_direct(RefusingIO(errno.EIO, refuses_open=False), tmp_path / "slab", CREATE)
    IO.close(fd)


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_each_kind_of_access_can_be_direct(tmp_path: Path, access: int) -> None:
    (tmp_path / "slab").write_bytes(bytes(SOURCE))
    fd, direct = open_direct(IO, tmp_path / "slab", access)
    IO.close(fd)
    if not direct:
        pytest.skip(f"the file system of {tmp_path} refuses O_DIRECT")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_other_errors_of_opening_are_passed_on(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match="no O_DIRECT"):
        open_direct(RefusingIO(number, refuses_open=True), tmp_path / "slab", CREATE)


def test_a_file_that_must_be_new_is_not_opened_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "slab").touch()
    with pytest.raises(FileExistsError):
        open_direct(IO, tmp_path / "slab", CREATE)


def test_an_allocated_file_has_its_blocks_and_keeps_its_bytes(fd: int) -> None:
    write_fully(IO, fd, [SOURCE[:PAGE]], 0)
    IO.allocate(fd, 4 * FILE_BYTES)
    assert os.fstat(fd).st_size == 4 * FILE_BYTES
    assert memory.allocated_bytes(fd) >= 4 * FILE_BYTES
    assert contents(fd)[:PAGE] == bytes(SOURCE[:PAGE])
    IO.sync(fd)


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert 0 < IO.free_bytes(tmp_path) < status.f_blocks * status.f_frsize


def test_names_can_be_replaced_removed_and_made_durable(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("fresh")
    new.write_text("stale")
    IO.rename(old, new)
    IO.sync_directory(tmp_path)
    assert new.read_text() == "fresh"
    IO.unlink(new)
    assert list(tmp_path.iterdir()) == []


def test_views_of_a_stretch_are_not_copies() -> None:
    first, second = np.zeros((2, 3), np.uint8), np.zeros(4, np.uint8)
    views = stretch([first, b"", second], 2, 8)
    assert [view.size for view in views] == [4, 2]
    for view in views:
        view[:] = 1
    assert first.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert second.tolist() == [1, 1, 0, 0]
    assert [view.tobytes() for view in stretch([b"abc", second], 1)] == [b"bc", b"\1\1\0\0"]

"""Behaviour of `kvtier.memory`, as the kernel sees it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier import memory

PAGE = memory.PAGE_BYTES


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memory.create_memfd("kvtier-test", 16 * PAGE)
    yield fd
    os.close(fd)


def is_mapped(address: int) -> bool:
    spans = re.findall(r"^(\w+)-(\w+) ", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


def test_a_mapping_lives_as_long_as_its_last_view(fd: int) -> None:
    unmapped: list[bool] = []
    whole = memory.map_shared(
        fd, 2 * PAGE, writable=True, on_unmap=lambda: unmapped.append(is_mapped(address))
    )
    address = whole.ctypes.data
    view = whole.reshape(2, PAGE)[1, 10:20]
    del whole
    assert is_mapped(address)
    view[:] = 3
    assert unmapped == []
    del view
    assert unmapped == [False], "told before it was unmapped"
    assert os.pread(fd, 10, PAGE + 10) == b"\3" * 10


def test_a_mapping_keeps_no_descriptor() -> None:
    before = open_descriptors()
    fd = memory.create_memfd("kvtier-test", PAGE)
    array = memory.map_shared(fd, PAGE, writable=True)
    os.close(fd)
    assert open_descriptors() == before
    array[:] = 1
    assert int(array.sum()) == PAGE


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_read_only_mapping_cannot_be_written(fd: int) -> None:
    array = memory.map_shared(fd, PAGE, writable=False)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    permissions = re.search(
        rf"^{array.ctypes.data:x}-\w+ (....)", Path("/proc/self/maps").read_text(), re.MULTILINE
    )
    assert permissions is not None
    assert permissions[1] == "r--s"


def test_a_part_of_a_file_is_mapped_at_its_offset(fd: int) -> None:
    os.pwrite(fd, b"here", 3 * PAGE)
    array = memory.map_shared(fd, PAGE, writable=False, offset=3 * PAGE)
    assert bytes(array[:4]) == b"here"


def test_what_cannot_be_mapped_is_an_error(fd: int) -> None:
    with pytest.raises(OSError, match="mmap"):
        memory.map_shared(fd, PAGE, writable=True, offset=1)
    with pytest.raises(OSError, match="mmap"):
        memory.map_shared(-1, PAGE, writable=True)


def test_a_forked_child_does_not_inherit_a_mapping(fd: int) -> None:
    array = memory.map_shared(fd, PAGE, writable=True)
    array[0] = 1
    flags = flags_of(array.ctypes.data)
    assert "dc" in flags, "VM_DONTCOPY"
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os._exit(is_mapped(array.ctypes.data))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def flags_of(address: int) -> list[str]:
    smaps = Path("/proc/self/smaps").read_text()
    entry = smaps[smaps.index(f"{address:x}-") :]
    found = re.search(r"VmFlags: (.*)", entry)
    assert found is not None
    return found[1].split()


def test_populating_allocates_pages_and_punching_gives_them_back(fd: int) -> None:
    array = memory.map_shared(fd, 16 * PAGE, writable=True)
    assert memory.allocated_bytes(fd) == 0
    memory.populate(fd, array, 2 * PAGE, 3 * PAGE)
    assert memory.allocated_bytes(fd) == 3 * PAGE
    array[2 * PAGE] = 9
    memory.punch_hole(fd, 2 * PAGE, PAGE)
    assert memory.allocated_bytes(fd) == 2 * PAGE
    assert array[2 * PAGE] == 0


def test_populating_keeps_what_is_there(fd: int) -> None:
    array = memory.map_shared(fd, PAGE, writable=True)
    array[:] = 5
    memory.populate(fd, array, 0, PAGE)
    assert set(array.tolist()) == {5}


def test_populating_falls_back_where_the_kernel_refuses(fd: int) -> None:
    """`madvise` of a read-only mapping fails, as that of an old kernel."""
    array = memory.map_shared(fd, 16 * PAGE, writable=False)
    memory.populate(fd, array, 0, 4 * PAGE)
    assert memory.allocated_bytes(fd) == 4 * PAGE


def test_a_memfd_has_a_size_that_nobody_changes(fd: int) -> None:
    for size_bytes in (0, 32 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)
    assert os.fstat(fd).st_size == 16 * PAGE
    assert not os.get_inheritable(fd)


def test_a_sealed_memfd_is_written_through_older_mappings_only(fd: int) -> None:
    older = memory.map_shared(fd, PAGE, writable=True)
    memory.seal_for_readers(fd)
    older[0] = 4
    assert os.pread(fd, 1, 0) == b"\4"
    with pytest.raises(PermissionError):
        memory.map_shared(fd, PAGE, writable=True)
    assert memory.map_shared(fd, PAGE, writable=False)[0] == 4


def test_available_memory_is_no_more_than_the_system_has() -> None:
    available = memory.available_bytes()
    fields = dict(
        re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    )
    assert 0 < available <= int(fields["MemTotal"]) * 1024

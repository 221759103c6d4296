"""Shared memory as the kernel offers it: memfds, mappings, population, holes.

The one place that calls libc about memory. Mappings are made without Python's `mmap`, which would
keep a duplicate of the descriptor open for as long as the mapping lives.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]

PAGE_BYTES = 4096
MAX_DESCRIPTORS_PER_MESSAGE = 64

_POPULATE_STEP_BYTES = 512 << 10
_MADV_DONTFORK = 10
_MADV_POPULATE_WRITE = 23
_MAP_NORESERVE = 0x4000
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_F_ADD_SEALS = 1033
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 1, 2, 4, 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def create_memfd(name: str, size_bytes: int) -> int:
    """A memfd whose size nobody can change. The caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal_for_readers(fd: int) -> None:
    """From now on only mappings that exist already can write."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_FUTURE_WRITE | _SEAL_SEAL)


def map_shared(
    fd: int,
    size_bytes: int,
    *,
    writable: bool,
    offset: int = 0,
    on_unmap: Callable[[], None] = lambda: None,
    before_unmap: Callable[[], None] = lambda: None,
) -> ByteArray:
    """Maps a file and returns its bytes; unmapped when the last view of the array is gone.

    The descriptor may be closed afterwards. Forked children do not inherit the mapping. `on_unmap`
    is called after unmapping, by whichever thread dropped the last view, `before_unmap` before it.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | _MAP_NORESERVE
    address = _libc.mmap(None, size_bytes, protection, flags, fd, offset)
    if address == _FAILED:
        _raise_errno("mmap")
    buffer = (ctypes.c_ubyte * size_bytes).from_address(address)
    # At exit the kernel unmaps; doing it here would pull memory from under live views.
    end = (os.getpid(), address, size_bytes, on_unmap, before_unmap)
    weakref.finalize(buffer, _unmap, *end).atexit = False
    if _libc.madvise(address, size_bytes, _MADV_DONTFORK):
        _raise_errno("madvise(MADV_DONTFORK)")
    array: ByteArray = np.frombuffer(buffer, dtype=np.uint8)  # type: ignore[call-overload]
    array.flags.writeable = writable
    return array


def _unmap(
    pid: int,
    address: int,
    size_bytes: int,
    on_unmap: Callable[[], None],
    before_unmap: Callable[[], None],
) -> None:
    if os.getpid() != pid:  # a forked child has no such mapping, and perhaps another one there
        return
    before_unmap()
    _libc.munmap(address, size_bytes)
    on_unmap()


def populate(fd: int, memory: ByteArray, offset: int, size_bytes: int) -> None:
    """Allocates pages of a mapping, charged to this process. Releases the GIL.

    In steps: a kernel that is not preemptible keeps the processor for as long as a call takes.
    """
    end = offset + size_bytes
    for start in range(offset, end, _POPULATE_STEP_BYTES):
        size = min(_POPULATE_STEP_BYTES, end - start)
        if _libc.madvise(memory.ctypes.data + start, size, _MADV_POPULATE_WRITE) == 0:
            continue
        # Kernels before 5.14 do not know it; this allocates too, without the page tables.
        if _libc.fallocate(fd, 0, start, size):
            _raise_errno("fallocate")


def can_populate() -> bool:
    """Whether `populate` also makes page tables: MADV_POPULATE_WRITE, of Linux 5.14."""
    return bool(_libc.madvise(None, 0, _MADV_POPULATE_WRITE) == 0)


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Gives pages back at once, mapped or not; they read as zeros. Releases the GIL."""
    if _libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, size_bytes):
        _raise_errno("fallocate(FALLOC_FL_PUNCH_HOLE)")


def allocated_bytes(fd: int) -> int:
    """What the kernel counts as allocated."""
    return os.fstat(fd).st_blocks * 512


def keep_large_buffers() -> None:
    """Makes malloc reuse large buffers; each fresh one would be first touch, 3 times slower."""
    _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    _libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def trim() -> None:
    """Gives free heap back to the system: after much was made and dropped. Takes some ms."""
    _libc.malloc_trim(0)


def available_bytes() -> int:
    """Memory that can still be allocated: the system's, or what the cgroup leaves of it."""
    available = _cgroup_headroom()
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return min(available, int(line.split()[1]) * 1024)
    return available


def total_bytes() -> int:
    """The system's memory, or what the limits of the cgroup allow of it."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    for folder in cgroup_folders():
        for name in ("memory.max", "memory.high"):
            with suppress(OSError, ValueError):  # not there, or "max"
                total = min(total, int(_read(f"{folder}/{name}")))
    return total


def cgroup_folders() -> Iterator[Path]:
    """Of this process's cgroup (version 2) and of all above it."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as lines:
            path = next((line[3:].strip() for line in lines if line.startswith("0::")), "")
    except OSError:
        return
    while path:
        yield Path(f"/sys/fs/cgroup{path}")
        path = path.rpartition("/")[0]


def _cgroup_headroom() -> int:
    """Room below the limits of this process's cgroup (version 2) and of all above it."""
    headroom = 1 << 62
    for folder in cgroup_folders():
        try:
            limit = _read(f"{folder}/memory.max")
            if limit != "max":
                reclaimable = _reclaimable_bytes(f"{folder}/memory.stat")
                used = int(_read(f"{folder}/memory.current")) - reclaimable
                headroom = min(headroom, int(limit) - used)
        except (OSError, ValueError):
            pass
    return headroom


def pressure_seconds() -> dict[str, float]:
    """How long some, or all (full), of this cgroup's processes have waited for memory; the
    system's where the kernel does not say it for cgroups, empty where it says nothing."""
    own = next(cgroup_folders(), Path("/proc"))
    for path in (own / "memory.pressure", Path("/proc/pressure/memory")):
        try:
            lines = _read(str(path)).splitlines()
        except OSError:
            continue
        return {line.split()[0]: int(line.rpartition("total=")[2]) / 1e6 for line in lines}
    return {}


def _reclaimable_bytes(path: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _raise_errno(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}")

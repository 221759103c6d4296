"""System calls on files, and transfers that finish what a call left undone.

The one place that calls the kernel about slab files and their tables.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.memory import ByteArray

#: What O_DIRECT wants offsets, sizes and memory addresses to be multiples of.
ALIGNMENT_BYTES = 4096
#: Calls in a row that bring a transfer no further before it is given up.
MAX_FRUITLESS_CALLS = 16

_MAX_BUFFERS = 1024  # IOV_MAX of Linux
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class BlockIO:
    """The system calls on slab files, one method each; all release the GIL and raise OSError.

    Tests put a double in its place (`kvtier.testing.FaultyIO`).
    """

    def open(self, path: Path, flags: int) -> int:
        """A descriptor that children do not inherit; a new file belongs to its user alone."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        """How many bytes were read: fewer than wanted now and then, 0 at the end of the file."""
        views: Any = buffers  # NumPy's stubs know the buffer protocol from Python 3.12 on
        return os.preadv(fd, views, offset)

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        """How many bytes were written: fewer than wanted now and then."""
        views: Any = buffers
        return os.pwritev(fd, views, offset)

    def sync(self, fd: int) -> None:
        """Returns when what was written is on the device. After an error nobody knows what is."""
        os.fdatasync(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Makes the file so large, with its blocks reserved; what it holds stays.

        Where the file system cannot, libc writes into each block instead; it cannot do that with
        O_DIRECT, and the call raises EINVAL.
        """
        os.posix_fallocate(fd, 0, size_bytes)

    def free_bytes(self, path: Path) -> int:
        """What the file system of `path` has left for users that are not root."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def close(self, fd: int) -> None:
        os.close(fd)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rename(self, old: Path, new: Path) -> None:
        """Replaces `new`."""
        os.rename(old, new)

    def sync_directory(self, path: Path) -> None:
        """Returns when the names in it are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def open_direct(io: BlockIO, path: Path, flags: int) -> tuple[int, bool]:
    """Opens past the page cache, or through it where the file system refuses that.

    Returns the descriptor and whether it is direct. Some file systems take O_DIRECT and refuse the
    first transfer: one page is read to see that. An empty file does not show it.
    """
    try:
        fd = io.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
    else:
        if _takes_direct_reads(io, fd, flags):
            return fd, True
        io.close(fd)
    # The kernel creates a file before it refuses O_DIRECT, so that O_EXCL has had its answer.
    return io.open(path, flags & ~(os.O_DIRECT | os.O_EXCL)), False


def _takes_direct_reads(io: BlockIO, fd: int, flags: int) -> bool:
    if flags & os.O_ACCMODE == os.O_WRONLY:
        return True
    try:
        io.read(fd, [_aligned_page()], 0)
    except OSError as error:
        # Any other error is the device's: whoever reads that block meets it again.
        return error.errno not in _REFUSALS
    return True


def _aligned_page() -> ByteArray:
    memory = np.empty(2 * ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + ALIGNMENT_BYTES]


def read_fully(io: BlockIO, fd: int, buffers: Sequence[ByteArray], offset: int) -> None:
    """Fills all buffers, in order, from `offset` bytes on; releases the GIL meanwhile.

    Buffers are contiguous; for a direct descriptor they, their sizes and the offset are aligned to
    ALIGNMENT_BYTES. Raises OSError: the device's, or EIO at the end of the file or when no call
    brings it further. Then the buffers hold anything.
    """
    _transfer(io.read, fd, buffers, offset)


def write_fully(io: BlockIO, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> None:
    """Writes all buffers, in order, from `offset` bytes on; as `read_fully`.

    After an error the file holds any part of them.
    """
    _transfer(io.write, fd, buffers, offset)


def _transfer(
    call: Callable[[int, Sequence[Any], int], int],
    fd: int,
    buffers: Sequence[ByteArray | bytes],
    offset: int,
) -> None:
    for start in range(0, len(buffers), _MAX_BUFFERS):
        offset = _transfer_at_once(call, fd, buffers[start : start + _MAX_BUFFERS], offset)


def _transfer_at_once(
    call: Callable[[int, Sequence[Any], int], int],
    fd: int,
    buffers: Sequence[ByteArray | bytes],
    offset: int,
) -> int:
    """Returns the offset behind the last byte."""
    sizes = [_size(buffer) for buffer in buffers]
    end = offset + sum(sizes)
    # A direct transfer goes on from a whole page and moves a part of it again. Files that are not
    # direct do not mind; only what could not be direct goes on from the byte.
    is_aligned = not any(size % ALIGNMENT_BYTES for size in (offset, *sizes))
    step = ALIGNMENT_BYTES if is_aligned else 1
    fruitless = 0
    while offset < end:
        try:
            moved = call(fd, buffers, offset)
            if moved == 0:
                raise OSError(errno.EIO, f"nothing more moves at offset {offset} of the file")
        except InterruptedError:
            moved = 0
        if moved == end - offset:
            break
        moved -= moved % step
        if moved:
            fruitless = 0
            offset += moved
            buffers = stretch(buffers, moved)
            continue
        fruitless += 1
        if fruitless == MAX_FRUITLESS_CALLS:
            raise OSError(errno.EIO, f"{fruitless} calls moved nothing at offset {offset}")
    return end


def stretch(
    buffers: Sequence[ByteArray | bytes], start: int, end: int = sys.maxsize
) -> list[ByteArray]:
    """Views of the bytes from `start` to `end` of all buffers, none of them empty."""
    views: list[ByteArray] = []
    for buffer in buffers:
        size = _size(buffer)
        if max(start, 0) < min(end, size):
            views.append(np.frombuffer(buffer, np.uint8)[max(start, 0) : min(end, size)])
        start, end = start - size, end - size
    return views


def _size(buffer: ByteArray | bytes) -> int:
    return buffer.nbytes if isinstance(buffer, np.ndarray) else len(buffer)

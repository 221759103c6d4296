"""Each directory of DISK: whether it can be used, how much room there is, how fast it is."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kvtier.config import AgentConfig, format_size
from kvtier.doctor.finding import Finding, ok, problem, skipped, warning
from kvtier.memory import ByteArray
from kvtier.tiers.disk.io import ALIGNMENT_BYTES, BlockIO, open_direct, read_fully, write_fully

_PIECE_BYTES = 2 << 20
_MOST_BYTES = 64 << 20
_SECONDS = 0.5
#: Slower than this, computing is often sooner: bytes a second.
_SLOW = 200e6
_OF_MEMORY = ("tmpfs", "ramfs")
_OF_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "9p", "lustre", "glusterfs")


def disk_findings(config: AgentConfig, *, has_agent: bool, is_measured: bool) -> Iterator[Finding]:
    """Writes and deletes a file of at most 64 MiB in each directory, if it is measured."""
    paths = config.tiers.disk.paths
    if not paths:
        yield skipped("DISK", "tiers.disk.paths is empty: there is no such tier")
    for path in paths:
        yield from _path(path, config, has_agent=has_agent, is_measured=is_measured)


def _path(
    path: Path, config: AgentConfig, *, has_agent: bool, is_measured: bool
) -> Iterator[Finding]:
    subject = f"DISK {path}"
    place = next(each for each in (path, *path.parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        yield problem(
            subject,
            f"{place} cannot be written by uid {os.geteuid()}"
            if place.is_dir()
            else f"{place} is not a directory",
            "mount the device there, and give the directory to the agent's user",
        )
        return
    if not has_agent and _is_locked(path):
        yield problem(
            subject,
            "another agent uses it",
            "one directory belongs to one agent: stop it, or choose another directory",
        )
    yield from _space(subject, path, place, config)
    yield from _file_system(subject, place)
    if is_measured:
        yield from _device(subject, place)


def _is_locked(path: Path) -> bool:
    try:
        with (path / "kvtier.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _space(subject: str, path: Path, place: Path, config: AgentConfig) -> Iterator[Finding]:
    disk = config.tiers.disk
    share = disk.capacity // len(disk.paths)
    free = BlockIO().free_bytes(place)
    has = sum(each.stat().st_blocks * 512 for each in path.glob("slab-*"))
    said = f"{_about(free)} free, of which min_free keeps {format_size(disk.min_free)}"
    if free < disk.min_free:
        yield problem(
            subject,
            f"{said}: nothing is written there",
            "make space on the device, or lower tiers.disk.min_free",
        )
    elif free - disk.min_free < share - has:
        yield warning(
            subject,
            f"{said}: DISK has {_about(has)} there and cannot grow to its {_about(share)}",
            "make space on the device, or lower tiers.disk.capacity",
        )
    else:
        yield ok(subject, f"{said}; {_about(has)} of {_about(share)} in use")


def _file_system(subject: str, place: Path) -> Iterator[Finding]:
    kind = file_system_of(place)
    if kind in _OF_MEMORY:
        yield warning(
            subject,
            f"it is in memory ({kind}), and gone with the next boot",
            "a directory on a local SSD; give the memory to HOST instead",
        )
    elif kind in _OF_NETWORK:
        yield warning(
            subject,
            f"it is on the network ({kind})",
            "a directory on a local SSD; nodes share blocks by way of CLUSTER",
        )


def file_system_of(place: Path) -> str:
    """As /proc/mounts calls it; empty if nobody knows."""
    wanted, found, kind = place.resolve(), Path("/"), ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, each, *_ = line.split(" ")
        point = Path(mounted.encode().decode("unicode_escape"))
        if (point == wanted or point in wanted.parents) and len(point.parts) >= len(found.parts):
            found, kind = point, each
    return kind


def _device(subject: str, place: Path) -> Iterator[Finding]:
    try:
        is_direct, written, read = _measured(place)
    except OSError as error:
        yield problem(subject, f"cannot be tried: {error.strerror}", "see dmesg for the device")
        return
    if not is_direct:
        yield warning(
            subject,
            "the file system refuses O_DIRECT: blocks go through the page cache",
            "ext4 or XFS on a local device",
        )
    said = f"writes {_speed(written)}, reads {_speed(read)}{', O_DIRECT' if is_direct else ''}"
    if min(written, read) < _SLOW:
        yield warning(
            subject,
            f"{said}: slow",
            "see who else uses the device; a local NVMe does ten times that",
        )
    else:
        yield ok(subject, said)


def _measured(place: Path) -> tuple[bool, float, float]:
    """Whether it is direct; bytes a second written, synced, and read. Raises OSError."""
    io, piece = BlockIO(), _aligned(_PIECE_BYTES)
    piece[:] = np.random.default_rng(0).integers(0, 256, _PIECE_BYTES, np.uint8)
    with _scratch_file(io, place) as (fd, is_direct):
        began, size = time.monotonic(), 0
        while size < _MOST_BYTES and time.monotonic() - began < _SECONDS:
            write_fully(io, fd, [piece], size)
            size += _PIECE_BYTES
        io.sync(fd)
        written = size / (time.monotonic() - began)
        if not is_direct:
            os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)
        began, done = time.monotonic(), 0
        while done < size and time.monotonic() - began < _SECONDS:
            read_fully(io, fd, [piece], done)
            done += _PIECE_BYTES
        return is_direct, written, done / (time.monotonic() - began)


@contextmanager
def _scratch_file(io: BlockIO, place: Path) -> Iterator[tuple[int, bool]]:
    path = place / f".kvtier-doctor-{os.getpid()}"
    made = io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        try:
            io.write(
                made, [bytes(ALIGNMENT_BYTES)], 0
            )  # an empty file does not show what is refused
        finally:
            io.close(made)
        fd, is_direct = open_direct(io, path, os.O_RDWR)
        try:
            yield fd, is_direct
        finally:
            io.close(fd)
    finally:
        io.unlink(path)


def _aligned(size_bytes: int) -> ByteArray:
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes]


def _speed(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def _about(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"

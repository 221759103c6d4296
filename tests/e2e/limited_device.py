"""A block device that is no faster than it is allowed to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OURS = f"kvtier-test-{os.getpid()}"


@contextmanager
def limited_device(path: Path, bytes_per_second: int) -> Iterator[bool]:
    """The device of `path`, for this process and those that it starts, reading and writing each;
    False where the kernel does not let it be limited."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    group, limits = _group(number, bytes_per_second)
    before = group.parent / _own_path(group.parent.name)
    try:
        group.mkdir()
    except OSError:
        yield False
        return
    try:
        try:
            for name, value in limits.items():
                (group / name).write_text(value)
            _move(group)
        except OSError:
            yield False
        else:
            yield True
    finally:
        _move(before)
        group.rmdir()


def _group(number: str, bytes_per_second: int) -> tuple[Path, dict[str, str]]:
    """A cgroup that is to be made, and what is to be written to its files."""
    first = _ROOT / "blkio"
    if first.exists():
        names = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
        return first / _OURS, dict.fromkeys(names, f"{number} {bytes_per_second}")
    limit = f"{number} rbps={bytes_per_second} wbps={bytes_per_second}"
    return _ROOT / _OURS, {"io.max": limit}


def _own_path(controller: str) -> str:
    """Of this process now, below the root of a controller's groups."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    return paths.get(controller, paths.get("", "/")).lstrip("/")


def _move(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))

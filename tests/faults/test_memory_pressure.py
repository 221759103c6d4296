"""A real cgroup in which memory is short: its pressure makes HOST smaller, and its end larger."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvtier.agent.operating.auto_sizing import AutoSizing, SizingOptions
from kvtier.agent.operating.memory_pressure import KernelMemory
from kvtier.tiers.host import HostTier
from tests.faults.waiting import wait_until

MIB = 1 << 20
_LIMIT_MIB, _FILE_MIB = 24, 96
_SECONDS = 60.0
_ROOT = Path("/sys/fs/cgroup")

#: Reads a file that does not fit, again and again. Its pages belong to who writes it.
_THRASH = """
import os, sys
path, size, *folders = sys.argv[1:]
for folder in folders:
    with open(f"{folder}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
fd = os.open(path, os.O_RDWR | os.O_CREAT)
for place in range(int(size)):
    os.pwrite(fd, os.urandom(1 << 20), place << 20)
os.fsync(fd)
while True:
    for place in range(int(size)):
        os.pread(fd, 1 << 20, place << 20)
"""


@dataclass(frozen=True)
class Cgroup:
    """Where its pressure is, and all folders that a process enters; with version 1 of the memory
    controller these are two."""

    pressure: Path
    folders: tuple[Path, ...]


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    name = f"kvtier-test-{os.getpid()}"
    if (_ROOT / "cgroup.controllers").exists():
        folders, limit = [_ROOT / name], "memory.max"
    else:
        folders, limit = (
            [_ROOT / "unified" / name, _own_v1_folder() / name],
            "memory.limit_in_bytes",
        )
    made = []
    try:
        for each in folders:
            try:
                each.mkdir()
                made.append(each)
            except OSError as error:
                pytest.skip(f"no cgroup can be made here: {error}")
        pressure = folders[0] / "memory.pressure"
        if not (folders[-1] / limit).exists() or not pressure.exists():
            pytest.skip("cgroups have no memory controller, or no pressure, here")
        (folders[-1] / limit).write_text(str(_LIMIT_MIB * MIB))
        yield Cgroup(pressure, tuple(folders))
    finally:
        for each in made:
            wait_until(lambda each=each: not (each / "cgroup.procs").read_text(), _SECONDS)  # type: ignore[misc]
            each.rmdir()


def _own_v1_folder() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/")
    return _ROOT / "memory"


def _resize(host: HostTier, size_bytes: int) -> None:
    host.resize(size_bytes)


def test_its_pressure_makes_host_smaller(cgroup: Cgroup, tmp_path: Path) -> None:
    host = HostTier(64 * MIB)
    options = SizingOptions(0.5, 0, 16 * MIB, 64 * MIB, pressure=0.01, calm_seconds=0.2)
    memory = KernelMemory([cgroup.pressure.parent])
    sizing = AutoSizing(host, options, memory, lambda size: _resize(host, size), time.monotonic)

    def is_at(size_bytes: int) -> bool:
        sizing.step()
        return host.space.capacity_bytes == size_bytes

    thrash = [sys.executable, "-c", _THRASH, str(tmp_path / "large"), str(_FILE_MIB)]
    with subprocess.Popen([*thrash, *map(str, cgroup.folders)]) as process:
        try:
            wait_until(lambda: is_at(16 * MIB), _SECONDS, 0.1)
        finally:
            process.kill()
    assert sizing.shrunk_count > 0
    wait_until(lambda: is_at(64 * MIB), _SECONDS, 0.01)
    host.close()

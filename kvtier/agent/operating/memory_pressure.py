"""How short memory is, as the kernel says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtier import memory

_NODE: Final = Path("/proc/pressure/memory")


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Counters since the kernel's start: the time in which some task waited for memory, and how
    often the cgroup came to its limit (`memory.high`, `memory.max`)."""

    total_bytes: int
    available_bytes: int
    stalled_seconds: float = 0.0
    limit_count: int = 0


class KernelMemory:
    """Of this process's cgroup (version 2) and those above it, else of the node.

    What a kernel does not tell counts as no pressure; what is available is always known.
    """

    def __init__(self, folders: Iterable[Path] | None = None, node: Path = _NODE) -> None:
        self._folders = list(memory.cgroup_folders() if folders is None else folders)
        self._pressures = [each / "memory.pressure" for each in self._folders[:1]] + [node]

    def read(self) -> MemoryState:
        """Takes some 0.1 ms."""
        return MemoryState(
            memory.total_bytes(),
            memory.available_bytes(),
            self._stalled_seconds(),
            sum(_limit_count(each / "memory.events") for each in self._folders),
        )

    def _stalled_seconds(self) -> float:
        for path in self._pressures:
            text = _read(path)
            if text.startswith("some "):
                return int(text.split(maxsplit=5)[4].removeprefix("total=")) / 1e6
        return 0.0


def _limit_count(path: Path) -> int:
    lines = (line.split() for line in _read(path).splitlines())
    return sum(int(count) for name, count in lines if name in ("high", "max"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

"""What a process uses over time, and whether that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.faults.agents import memfds, open_files, thread_count
from tests.faults.blocks import MIB

#: Of the time, at the beginning: caches fill.
_WARM_UP = 1 / 3
_LEAST_SECONDS = 100.0
#: By how much each may grow over the rest of the time, by its trend.
_ALLOWED = {"memory_bytes": 24 * MIB, "descriptors": 16, "threads": 6}


@dataclass(frozen=True)
class Sample:
    """Of one process at one time; memory without what is shared, descriptors without extents that
    have memory and slabs that exist, each once: capacities bound those, and the longer blocks of
    many classes come and go, the smaller and the more they are."""

    seconds: float
    memory_bytes: int
    shared_bytes: int
    descriptors: int
    extents: int
    threads: int


def sample(pid: int, seconds: float) -> Sample:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [anonymous] = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    extents = memfds(pid)
    others = [each for each in open_files(pid) if not each.startswith("/memfd:")]
    slabs = {each for each in others if each.endswith((".data", ".table"))}
    live = [size_bytes for size_bytes in extents.values() if size_bytes]
    return Sample(
        seconds,
        memory_bytes=anonymous << 10,
        shared_bytes=sum(extents.values()),
        descriptors=len(others) + len(extents) - len(slabs) - len(live),
        extents=len(live) + len(slabs),
        threads=thread_count(pid),
    )


def leaks(samples: Sequence[Sample], shared_limit_bytes: int) -> list[str]:
    """What grows, or is more than it may be."""
    found = []
    most = max((each.shared_bytes for each in samples), default=0)
    if most > shared_limit_bytes:
        found.append(f"shared memory: {most} bytes, and {shared_limit_bytes} are allowed")
    settled = [each for each in samples if each.seconds >= samples[-1].seconds * _WARM_UP]
    seconds = np.array([each.seconds for each in settled])
    if seconds[-1] - seconds[0] < _LEAST_SECONDS:
        return found
    for name, allowed in _ALLOWED.items():
        values = np.array([asdict(each)[name] for each in settled], float)
        growth = np.polyfit(seconds, values, 1)[0] * (seconds[-1] - seconds[0])
        if growth > allowed:
            found.append(f"{name}: grew by {growth:.0f} in {seconds[-1] - seconds[0]:.0f} s")
    return found

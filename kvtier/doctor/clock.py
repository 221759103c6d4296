"""Whether the wall clock can be believed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kvtier.config import AgentConfig
from kvtier.doctor.finding import Finding, ok, warning

_LATE_SECONDS = 5.0
#: No release of kvtier is older.
_EARLIEST = datetime(2025, 1, 1).timestamp()


def clock_findings(config: AgentConfig) -> Iterator[Finding]:
    """Against what was written to DISK; a server's clock is `cluster`'s to compare."""
    now = time.time()
    files = [each for path in config.tiers.disk.paths for each in path.glob("slab-*")]
    newest = max((_written_at(each) for each in files), default=0.0)
    if now < _EARLIEST:
        yield _wrong(f"it says {datetime.fromtimestamp(now):%Y-%m-%d}, which cannot be")
    elif newest > now + _LATE_SECONDS:
        yield _wrong(f"DISK has a file that was written {newest - now:.0f} s in the future")
    else:
        yield ok("clock", f"{datetime.fromtimestamp(now):%Y-%m-%d %H:%M:%S}")


def _wrong(found: str) -> Finding:
    return warning(
        "clock", found, "set it and let it follow NTP: times to live of blocks depend on it"
    )


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

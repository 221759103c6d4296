"""Whether a process of this machine stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STATES: Final = {
    "T": "stopped by a signal; `kill -CONT {pid}` continues it",
    "t": "stopped by a debugger",
    "D": "waiting for a device or a driver, and takes no signals",
    "Z": "dead, and its parent has not noticed",
}


def process_state(pid: int) -> str:
    """Why a process of this machine stands still; empty if it does not, or is not here."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return ""
    letter = text.rpartition(")")[2].split()[0]
    return _STATES.get(letter, "").format(pid=pid)

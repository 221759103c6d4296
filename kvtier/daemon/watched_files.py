"""Files that may change while the agent runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

#: What tells one content from another: inode, size, time of change.
_Stamp = tuple[int, int, int]


class WatchedFiles:
    """Says whether any of them is another than before. Links are followed, as Kubernetes changes
    them; a missing file is one more state."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stamps = self._look()

    def have_changed(self) -> bool:
        """Since it was last asked."""
        before, self._stamps = self._stamps, self._look()
        return before != self._stamps

    def _look(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_ctime_ns

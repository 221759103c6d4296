"""A device that forgets, when the power fails, what was written and not synced."""

from __future__ import annotations

import errno
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kvtier.memory import ByteArray
from kvtier.tiers.disk.io import BlockIO, stretch

_SECTOR_BYTES = 512


@dataclass
class _Write:
    """What was there before; `ended` once the call has returned."""

    offset: int
    before: bytes
    ended: bool = False


class ForgetfulIO(BlockIO):
    """Real system calls until `cut`, none after it; then `forget` undoes unsynced writes in part.

    Of each unsynced write any sectors may be kept, and any may be lost, in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: defaultdict[Path, list[_Write]] = defaultdict(list)
        self._is_cut = False

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True

    def forget(self, random: Random) -> int:
        """Returns how many sectors are as they were before."""
        lost = 0
        for path, writes in self._writes.items():
            if not path.exists():
                continue
            with path.open("r+b") as file:
                for write in reversed(writes):
                    for start in range(0, len(write.before), _SECTOR_BYTES):
                        if random.random() < 0.5:
                            file.seek(write.offset + start)
                            file.write(write.before[start : start + _SECTOR_BYTES])
                            lost += 1
        return lost

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        path = _path(fd)
        size = sum(view.size for view in stretch(buffers, 0))
        with path.open("rb") as file:
            file.seek(offset)
            write = _Write(offset, file.read(size))
        with self._lock:
            self._check()
            self._writes[path].append(write)
        written = super().write(fd, buffers, offset)
        write.ended = True
        return written

    def sync(self, fd: int) -> None:
        path = _path(fd)
        with self._lock:
            self._check()
            synced = [write for write in self._writes[path] if write.ended]
        super().sync(fd)
        with self._lock:
            self._check()
            self._writes[path] = [each for each in self._writes[path] if each not in synced]

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        with self._lock:
            self._check()
        return super().read(fd, buffers, offset)

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._check()
        super().unlink(path)

    def _check(self) -> None:
        if self._is_cut:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def _path(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))

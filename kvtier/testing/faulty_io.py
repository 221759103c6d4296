"""A device that fails in all the ways devices do, on real files."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from random import Random

import numpy as np

from kvtier.memory import ByteArray
from kvtier.tiers.disk.io import ALIGNMENT_BYTES, BlockIO, stretch

_DEVICE_ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Fault(Enum):
    """What may befall a call."""

    OPEN_ERROR = "open error"  #: EIO or EROFS
    READ_ERROR = "read error"  #: EIO
    WRITE_ERROR = "write error"  #: EIO, ENOSPC, EDQUOT or EROFS; nothing is written
    ALLOCATE_ERROR = "allocate error"  #: as for WRITE_ERROR
    SYNC_ERROR = "sync error"  #: as for WRITE_ERROR; of files and of directories
    SHORT_READ = "short read"  #: at least a byte, and not all
    SHORT_WRITE = "short write"
    TORN_WRITE = "torn write"  #: a stretch is written, then EIO
    BIT_FLIP = "bit flip"  #: a bit of what was read is wrong, and no error
    INTERRUPTION = "interruption"  #: EINTR of a read or write; nothing has moved
    SLOW_CALL = "slow call"
    HANG = "hang"  #: until `heal`


_ERRNOS = {
    Fault.OPEN_ERROR: (errno.EIO, errno.EROFS),
    Fault.READ_ERROR: (errno.EIO,),
    Fault.WRITE_ERROR: _DEVICE_ERRNOS,
    Fault.ALLOCATE_ERROR: _DEVICE_ERRNOS,
    Fault.SYNC_ERROR: _DEVICE_ERRNOS,
    Fault.INTERRUPTION: (errno.EINTR,),
}


class FaultyIO(BlockIO):
    """Real system calls, and faults by chance or by switch; any thread may call everything.

    `rates` are probabilities for a call that the fault can befall; `random` chooses, so that one
    thread with one seed meets the same faults again. Switches win over rates. Slow calls take
    `slow_seconds` longer, spent in `sleep`. `close` never fails or hangs.
    """

    def __init__(
        self,
        random: Random,
        rates: Mapping[Fault, float] | None = None,
        *,
        slow_seconds: float = 0.1,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._random = random
        self._rates = dict(rates or {})
        self._slow_seconds = slow_seconds
        self._sleep = sleep
        self._changed = threading.Condition()  # its lock guards everything here
        self._failing: dict[Fault, tuple[int, int | None]] = {}
        self._is_hanging = False
        self._healed = threading.Event()  # of those who hang now; `heal` sets it and makes another
        self._hanging_calls = 0
        self._latency_seconds, self._seconds_per_byte, self._busy_until = 0.0, 0.0, 0.0
        self._calls: Counter[str] = Counter()
        self._injected: Counter[Fault] = Counter()

    @property
    def calls(self) -> Counter[str]:
        """How often each method was called, by its name; a copy."""
        with self._changed:
            return self._calls.copy()

    @property
    def injected(self) -> Counter[Fault]:
        """How many faults there were, a copy."""
        with self._changed:
            return self._injected.copy()

    def set_rates(self, rates: Mapping[Fault, float]) -> None:
        """Replaces all rates."""
        with self._changed:
            self._rates = dict(rates)

    def fail_opens(self, number: int, *, calls: int | None = None) -> None:
        """The next `calls` (None: all) raise OSError with this errno; 0 calls: no longer."""
        self._fail(Fault.OPEN_ERROR, number, calls)

    def fail_reads(self, number: int, *, calls: int | None = None) -> None:
        """As `fail_opens`."""
        self._fail(Fault.READ_ERROR, number, calls)

    def fail_writes(self, number: int, *, calls: int | None = None) -> None:
        """As `fail_opens`."""
        self._fail(Fault.WRITE_ERROR, number, calls)

    def fail_allocations(self, number: int, *, calls: int | None = None) -> None:
        """As `fail_opens`."""
        self._fail(Fault.ALLOCATE_ERROR, number, calls)

    def fail_syncs(self, number: int, *, calls: int | None = None) -> None:
        """As `fail_opens`; of files and of directories."""
        self._fail(Fault.SYNC_ERROR, number, calls)

    def _fail(self, fault: Fault, number: int, calls: int | None) -> None:
        with self._changed:
            self._failing[fault] = (number, calls)

    def slow_down(self, *, latency_seconds: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """From now on each read and write takes so much longer, and all together move no more than
        so much (0: as much as they can), until `heal`: then those that wait go on."""
        with self._changed:
            self._latency_seconds = latency_seconds
            self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0.0
            self._busy_until = 0.0

    def hang(self) -> None:
        """From now on calls do not return until `heal`, then they go on."""
        with self._changed:
            self._is_hanging = True

    def wait_for_hang(self, calls: int = 1, *, deadline_seconds: float = 10.0) -> None:
        """Returns when so many calls hang. Raises TimeoutError at the deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._hanging_calls >= calls, deadline_seconds):
                raise TimeoutError(f"{self._hanging_calls} calls hang, not {calls}")

    def heal(self) -> None:
        """No more faults: switches are off, rates are zero, and calls that hang go on."""
        with self._changed:
            self._rates = {}
            self._failing = {}
            self._is_hanging = False
            self._hanging_calls = 0
            self._latency_seconds = self._seconds_per_byte = 0.0
            self._healed.set()
            self._healed = threading.Event()

    def open(self, path: Path, flags: int) -> int:
        self._enter("open", Fault.OPEN_ERROR)
        return super().open(path, flags)

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        self._enter("read", Fault.INTERRUPTION, Fault.READ_ERROR)
        self._take_time(buffers)
        size = self._short_size(buffers, Fault.SHORT_READ)
        if size is None:
            moved = super().read(fd, buffers, offset)
        else:
            wanted = stretch(buffers, 0, size + -size % _granule(fd))
            read = super().read(fd, wanted, offset)
            moved = min(read, size)
            for behind in stretch(wanted, moved, read):
                np.invert(behind, out=behind)  # nobody may rely on what was not reported
        if moved and self._draws(Fault.BIT_FLIP):
            with self._changed:
                place, bit = self._random.randrange(moved), self._random.randrange(8)
            stretch(buffers, place, place + 1)[0][0] ^= 1 << bit
        return moved

    def write(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> int:
        self._enter("write", Fault.INTERRUPTION, Fault.WRITE_ERROR)
        self._take_time(buffers)
        if self._draws(Fault.TORN_WRITE):
            self._tear(fd, buffers, offset)
        size = self._short_size(buffers, Fault.SHORT_WRITE)
        if size is None:
            return super().write(fd, buffers, offset)
        # Of a direct write more may reach the file than is reported.
        part = stretch(buffers, 0, size + -size % _granule(fd))
        return min(size, super().write(fd, part, offset))

    def sync(self, fd: int) -> None:
        self._enter("sync", Fault.SYNC_ERROR)
        super().sync(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._enter("allocate", Fault.ALLOCATE_ERROR)
        super().allocate(fd, size_bytes)

    def free_bytes(self, path: Path) -> int:
        self._enter("free_bytes")
        return super().free_bytes(path)

    def close(self, fd: int) -> None:
        with self._changed:
            self._calls["close"] += 1
        super().close(fd)

    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        super().unlink(path)

    def rename(self, old: Path, new: Path) -> None:
        self._enter("rename")
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._enter("sync_directory", Fault.SYNC_ERROR)
        super().sync_directory(path)

    def _enter(self, name: str, *errors: Fault) -> None:
        """What befalls a call before it reaches the kernel."""
        with self._changed:
            self._calls[name] += 1
            is_slow = self._hits(Fault.SLOW_CALL)
            healed = self._healed if self._hits(Fault.HANG, switched=self._is_hanging) else None
        if is_slow:
            self._sleep(self._slow_seconds)
        if healed is not None:
            self._wait(healed)
        with self._changed:
            for fault in errors:
                number = self._failure(fault)
                if number:
                    raise OSError(number, f"{os.strerror(number)} (injected)")

    def _take_time(self, buffers: Sequence[ByteArray | bytes]) -> None:
        """Latencies of several calls overlap; what moves shares one device."""
        with self._changed:
            now = time.monotonic()
            free = max(now, self._busy_until) + _size(buffers) * self._seconds_per_byte
            if self._seconds_per_byte:
                self._busy_until = free
            seconds, healed = free - now + self._latency_seconds, self._healed
        if seconds > 0:
            healed.wait(seconds)

    def _wait(self, healed: threading.Event) -> None:
        with self._changed:
            if healed.is_set():  # meanwhile
                return
            self._hanging_calls += 1
            self._changed.notify_all()
        healed.wait()

    def _failure(self, fault: Fault) -> int:
        """The errno of this call, 0 for none."""
        number, left = self._failing.get(fault, (0, 0))
        if left:
            self._failing[fault] = (number, left - 1)
        is_switched = left != 0
        if not self._hits(fault, switched=is_switched):
            return 0
        return number if is_switched else self._random.choice(_ERRNOS[fault])

    def _hits(self, fault: Fault, *, switched: bool = False) -> bool:
        rate = self._rates.get(fault, 0.0)
        is_hit = switched or (rate > 0 and self._random.random() < rate)
        if is_hit:
            self._injected[fault] += 1
        return is_hit

    def _draws(self, fault: Fault) -> bool:
        with self._changed:
            return self._hits(fault)

    def _short_size(self, buffers: Sequence[ByteArray | bytes], fault: Fault) -> int | None:
        """How much of a transfer to report; None: what the kernel reports."""
        size = _size(buffers)
        with self._changed:
            return self._random.randrange(1, size) if size > 1 and self._hits(fault) else None

    def _tear(self, fd: int, buffers: Sequence[ByteArray | bytes], offset: int) -> None:
        granule = _granule(fd)
        granules = _size(buffers) // granule
        with self._changed:
            first, end = sorted(self._random.randrange(granules + 1) for _ in range(2))
        if granules and end - first == granules:
            end -= 1
        part = stretch(buffers, first * granule, end * granule)
        super().write(fd, part, offset + first * granule)
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (injected, torn write)")


def _granule(fd: int) -> int:
    """What the kernel wants sizes to be multiples of."""
    is_direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    return ALIGNMENT_BYTES if is_direct else 1


def _size(buffers: Sequence[ByteArray | bytes]) -> int:
    return sum(view.size for view in stretch(buffers, 0))

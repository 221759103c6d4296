"""A device whose copies end late, and not in the order in which they began."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Sequence

import numpy as np

from kvtier import devices
from kvtier.memory import ByteArray
from kvtier.tiers.device import Cells, Completion, DeviceMemory
from kvtier.tiers.emulated import EmulatedMemory

#: In slots to which a copy is under way.
_GARBAGE = 0xA5


class LateAccelerator:
    """A device in shared memory, for workers that say they are on `cpu`.

    A copy reads and writes its bytes some time after it began, `delay_seconds` after the last one
    at the earliest; of those under way any may be next. Until then the target holds garbage: who
    uses it before `wait` has returned, or uses the source again, gets wrong bytes. While `is_held`
    no copy ends. `close` ends what is under way.

    `memory_bytes` is all that it has; `refuses_pinning` makes `pin` fail. Thread-safe.
    """

    name = "late (fake)"
    identity = devices.EMULATED
    least_extent_bytes = 0

    def __init__(
        self,
        memory_bytes: int = 1 << 40,
        *,
        delay_seconds: float = 0.002,
        seed: int = 0,
        refuses_pinning: bool = False,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.allocated_bytes = 0
        self.refuses_pinning = refuses_pinning
        self.copy_count = 0
        self.pair_count = 0
        self.most_under_way = 0
        #: Sizes of what is pinned, by address.
        self.pinned: dict[int, int] = {}
        self.pin_count = 0
        self._delay_seconds = delay_seconds
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._under_way: list[_Copy] = []
        self._is_held = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="late-accelerator")
        self._thread.start()

    @property
    def under_way(self) -> int:
        """Copies that have begun and not ended."""
        return len(self._under_way)

    @property
    def is_held(self) -> bool:
        return self._is_held

    @is_held.setter
    def is_held(self, value: bool) -> None:
        with self._changed:
            self._is_held = value
            self._changed.notify_all()

    def available_bytes(self) -> int:
        return self.memory_bytes - self.allocated_bytes

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        with self._changed:
            if slots * slot_bytes > self.available_bytes():
                raise OSError(errno.ENOMEM, "the device is out of memory")
            self.allocated_bytes += slots * slot_bytes
        return _Memory(self, slots, slot_bytes)

    def free(self, size_bytes: int) -> None:
        with self._changed:
            self.allocated_bytes -= size_bytes

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        for _, target in pairs:
            target[:] = _GARBAGE
        copy = _Copy(pairs)
        with self._changed:
            self.copy_count += 1
            self.pair_count += len(pairs)
            self._under_way.append(copy)
            self.most_under_way = max(self.most_under_way, len(self._under_way))
            self._changed.notify_all()
        return copy

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or (self._under_way and not self._is_held)
                )
                if self._is_closed and not self._under_way:
                    return
                self._changed.wait_for(lambda: self._is_closed, self._delay_seconds)
                copy = self._under_way[self._random.randrange(len(self._under_way))]
            copy.end()
            with self._changed:
                self._under_way.remove(copy)

    def pin(self, cells: ByteArray) -> Callable[[], None]:
        if self.refuses_pinning:
            raise OSError(errno.ENOMEM, "the device pins nothing")
        address = cells.ctypes.data
        assert address not in self.pinned, "it is pinned already"
        self.pinned[address] = cells.nbytes
        self.pin_count += 1
        return lambda: self._unpin(address)

    def _unpin(self, address: int) -> None:
        del self.pinned[address]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()


class _Copy:
    def __init__(self, pairs: Sequence[tuple[Cells, Cells]]) -> None:
        self._pairs = pairs
        self._ended = threading.Event()

    def end(self) -> None:
        for source, target in self._pairs:
            np.copyto(target, source)
        self._ended.set()

    def wait(self) -> None:
        self._ended.wait()


class _Memory(EmulatedMemory):
    def __init__(self, accelerator: LateAccelerator, slots: int, slot_bytes: int) -> None:
        super().__init__(slots, slot_bytes)
        self._accelerator = accelerator
        self._size_bytes = slots * slot_bytes

    def close(self) -> None:
        super().close()
        self._accelerator.free(self._size_bytes)

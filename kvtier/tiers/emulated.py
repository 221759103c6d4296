"""A device that is not there: for machines without one, and shown as `cpu (emulated)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from kvtier import devices, memory
from kvtier.memory import ByteArray
from kvtier.tiers.device import Cells, Completion, DeviceMemory


class EmulatedAccelerator:
    """Its memory is shared memory, which workers open as tensors on the CPU. A copy has ended when
    `copy` returns. It needs no torch here."""

    name = "cpu (emulated)"
    identity = devices.EMULATED
    least_extent_bytes = 0

    def available_bytes(self) -> int:
        return memory.available_bytes()

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        return EmulatedMemory(slots, slot_bytes)

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        for source, target in pairs:
            np.copyto(target, source)
        return _DONE

    def pin(self, cells: ByteArray) -> Callable[[], None]:
        return lambda: None

    def close(self) -> None:
        """It has nothing."""


class _Done:
    def wait(self) -> None:
        return


_DONE = _Done()


class EmulatedMemory:
    """A populated memfd."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        size_bytes = slots * slot_bytes
        self.fd = memory.create_memfd("kvtier-device", size_bytes)
        try:
            mapped = memory.map_shared(self.fd, size_bytes, writable=True)
            memory.populate(self.fd, mapped, 0, size_bytes)
        except OSError:
            os.close(self.fd)
            raise
        self.cells: Cells = mapped.reshape(slots, slot_bytes)

    def handle(self) -> tuple[list[int], list[str | int]]:
        return [self.fd], []

    def close(self) -> None:
        self.cells = None
        os.close(self.fd)

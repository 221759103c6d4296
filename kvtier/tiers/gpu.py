"""Devices by PyTorch: all of the agent that needs a device, and its only module that imports torch.

It is imported when one is configured. It has not run on a device yet: see docs/gpu.md, and
`make test-cuda`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kvtier import devices
from kvtier.memory import ByteArray
from kvtier.tiers.device import Accelerator, Cells, Completion, DeviceMemory

#: torch's allocator shares what it takes from the driver between allocations smaller than this. A
#: handle opens all of it, and an extent is of one namespace alone.
_LEAST_EXTENT_BYTES = 10 << 20
#: Torch has shared handles for these: NVIDIA's, and AMD's by the same name.
_SHAREABLE = ("cuda",)


def open_accelerator(name: str) -> Accelerator:
    """A device by torch's name for it. Raises OSError if it is not there or cannot be shared."""
    torch.set_num_threads(1)  # movers are threads enough
    device = torch.device(name)
    # A build for a kind of device names it also where there is none.
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if present is None or device.type != present.type:
        raise OSError(f"torch has no {device.type} here; it has {present or 'no accelerator'}")
    if device.type not in _SHAREABLE:
        raise OSError(f"torch cannot share memory of {device.type} with other processes")
    if device.index >= torch.accelerator.device_count():
        raise OSError(f"there are {torch.accelerator.device_count()} devices, from number 0 on")
    try:
        return TorchAccelerator(device)
    except RuntimeError as error:
        raise OSError(_first_line(error)) from error


class TorchAccelerator:
    """One device. Each mover thread has a stream of its own; the default stream is never used."""

    least_extent_bytes = _LEAST_EXTENT_BYTES

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._streams = threading.local()
        self.identity = devices.identity(torch, device)
        self.name = f"{device} ({self._module.get_device_properties(device.index).name})"

    def available_bytes(self) -> int:
        free_bytes: int = self._module.mem_get_info(self._device.index)[0]
        return free_bytes

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        try:
            self.enter()
            return _TorchMemory(
                torch.empty((slots, slot_bytes), dtype=torch.uint8, device=self._device), self
            )
        except RuntimeError as error:  # out of memory, or the device has failed
            self.empty_cache()
            raise OSError(errno.ENOMEM, _first_line(error)) from error

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        stream = self.enter()
        event = torch.Event(self._device, blocking=True)
        try:
            for source, target in pairs:
                target.copy_(torch.as_tensor(source), non_blocking=True)
            event.record(stream)
        except RuntimeError as error:
            stream.synchronize()  # what has begun goes on otherwise, in slots that are used again
            raise OSError(_first_line(error)) from error
        return _Recorded(event)

    def enter(self) -> torch.Stream:
        """Makes this thread use the device, on a stream of the thread's own."""
        if not hasattr(self._streams, "own"):
            torch.accelerator.set_device_index(self._device.index)
            self._streams.own = torch.Stream(self._device)
            torch.accelerator.set_stream(self._streams.own)
        stream: torch.Stream = self._streams.own
        return stream

    def pin(self, cells: ByteArray) -> Callable[[], None]:
        return devices.register(torch, self._device, cells)

    def empty_cache(self) -> None:
        """Gives the driver what torch keeps of closed extents."""
        self._module.empty_cache()

    def close(self) -> None:
        self.empty_cache()


class _Recorded:
    def __init__(self, event: torch.Event) -> None:
        self._event = event

    def wait(self) -> None:
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise OSError(_first_line(error)) from error


class _TorchMemory:
    """A tensor that has an allocation of the driver for itself."""

    def __init__(self, cells: torch.Tensor, accelerator: TorchAccelerator) -> None:
        self.cells: Cells = cells
        self._accelerator = accelerator

    def handle(self) -> tuple[list[int], list[str | int]]:
        try:
            self._accelerator.enter()  # torch records an event, or waits, on the current stream
            return [], devices.share(self.cells)
        except RuntimeError as error:
            raise OSError(_first_line(error)) from error

    def close(self) -> None:
        """Torch keeps nothing of it, or the next extent, of another namespace, could be there."""
        self.cells = None
        self._accelerator.empty_cache()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

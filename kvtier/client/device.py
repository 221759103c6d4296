"""The device that a worker computes on."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvtier import devices, memory
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray

log = logging.getLogger(__name__)


class UnreadableDeviceError(Exception):
    """The agent's memory on a device cannot be opened from here."""


class WorkerDevice:
    """A device by torch's name, `cpu` for an emulated one. Thread-safe.

    The client imports no torch: the caller has. Raises InvalidRequestError for what is no device.
    """

    def __init__(self, device: Any) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            raise InvalidRequestError("device is for workers that compute with torch: import it")
        self._torch: Any = torch
        try:
            self.device = torch.device(device)
            self.identity = devices.identity(torch, self.device)
        except (RuntimeError, TypeError, AssertionError, ValueError) as error:
            raise InvalidRequestError(f"device is {device!r}: {error}") from error
        self._lock = threading.Lock()
        self._is_warned = False

    @property
    def is_emulated(self) -> bool:
        kind: str = self.device.type
        return kind == devices.EMULATED

    def open(
        self,
        descriptor: int | None,
        handle: Sequence[str | int],
        shape: tuple[int, int],
        on_unmap: Callable[[], None],
    ) -> Any:
        """The agent's slots as a tensor, [slots, slot_bytes], on this device.

        Raises UnreadableDeviceError.
        """
        try:
            if descriptor is not None:
                mapped = memory.map_shared(
                    descriptor, shape[0] * shape[1], writable=True, on_unmap=on_unmap
                )
                return self._torch.from_numpy(mapped).view(shape)
            # On a device: torch tells the agent's torch itself when the last view is gone.
            return devices.open_shared(self._torch, self.device, handle, shape)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UnreadableDeviceError(str(error).partition("\n")[0]) from error

    def pin(self, cells: ByteArray) -> list[Callable[[], None]]:
        """Registers the agent's host memory for fast copies; what ends that, if it could be."""
        if self.is_emulated:
            return []
        try:
            return [devices.register(self._torch, self.device, cells)]
        except OSError as error:
            with self._lock:
                is_first, self._is_warned = not self._is_warned, True
            if is_first:
                log.warning("kvtier: memory cannot be pinned, so copies are slower: %s", error)
            return []

    def settle(self) -> None:
        """Returns when copies have ended that this thread has begun on its current stream."""
        if not self.is_emulated:
            self._torch.accelerator.current_stream(self.device).synchronize()


def copy(target: Any, source: Any) -> None:
    """Between arrays and tensors; on a device it only begins, on this thread's current stream."""
    target, source = _as_array(target), _as_array(source)
    if isinstance(target, np.ndarray) and isinstance(source, np.ndarray):
        np.copyto(target, source)
        return
    torch: Any = sys.modules["torch"]
    torch.as_tensor(target).copy_(torch.as_tensor(source), non_blocking=True)


def _as_array(cells: Any) -> Any:
    """A tensor in this machine's memory as an array: torch would wake threads of its own."""
    if isinstance(cells, np.ndarray) or cells.device.type != devices.EMULATED:
        return cells
    return cells.numpy()

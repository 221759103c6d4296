"""Devices as PyTorch knows them: what the agent and its workers must agree on.

Whoever calls passes its own `torch`, so that importing this module imports none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from kvtier.memory import ByteArray

#: A device in shared memory, for machines without one.
EMULATED: Final = "cpu"
#: Extents of HOST have numbers below this; of the n-th device those from n times this on.
_EXTENTS_PER_PLACE: Final = 1 << 28
#: `cudaHostRegisterPortable`: for all devices.
_PORTABLE: Final = 1


def first_extent_id(number: int) -> int:
    """Of the n-th device, from 1."""
    return number * _EXTENTS_PER_PLACE + 1


def place_of(extent_id: int) -> int:
    """0: the extent is HOST's; else the number of the device it is on."""
    return extent_id // _EXTENTS_PER_PLACE


def identity(torch: Any, device: Any) -> str:
    """The same in all processes that use the device, whatever number it has in each."""
    device = torch.device(device)
    if device.type == EMULATED:
        return EMULATED
    properties = torch.get_device_module(device).get_device_properties(index_of(torch, device))
    return f"{device.type}:{getattr(properties, 'uuid', device.index)}"


def index_of(torch: Any, device: Any) -> int:
    """Its number in this process; `cuda` alone is the current one."""
    index: int | None = torch.device(device).index
    if index is None:
        index = torch.accelerator.current_device_index()
    return index


# What follows needs a device. It has not run on one yet; see docs/gpu.md.


def register(torch: Any, device: Any, cells: ByteArray) -> Callable[[], None]:
    """Pins memory of this process for fast copies; what it returns ends that, before the memory is
    unmapped. Raises OSError."""
    kind = torch.device(device).type
    if kind != "cuda":
        raise OSError(f"torch registers no memory for {kind}")
    runtime, pointer = torch.cuda.cudart(), cells.ctypes.data
    with torch.cuda.device(device):
        error = runtime.cudaHostRegister(pointer, cells.nbytes, _PORTABLE)
    if int(error):
        raise OSError(f"cudaHostRegister of {cells.nbytes >> 20} MiB: {error}")

    def unregister() -> None:
        with torch.cuda.device(device):
            runtime.cudaHostUnregister(pointer)

    return unregister


def share(tensor: Any) -> list[str | int]:
    """A handle by which another process opens the tensor's storage, in JSON's types.

    Each handle is for one process: torch counts who has one.
    """
    fields = tensor.untyped_storage()._share_cuda_()
    return [each.hex() if isinstance(each, bytes) else int(each) for each in fields]


def open_shared(torch: Any, device: Any, handle: Sequence[str | int], shape: Sequence[int]) -> Any:
    """The bytes of a storage that another process shares, as a tensor. Raises RuntimeError."""
    fields = [bytes.fromhex(each) if isinstance(each, str) else each for each in handle]
    fields[0] = index_of(torch, device)  # the other process may have another number for it
    fields[-1] = bool(fields[-1])
    storage = torch.UntypedStorage._new_shared_cuda(*fields)
    empty = torch.empty(0, dtype=torch.uint8, device=device)
    return empty.set_(storage, 0, tuple(shape), (shape[1], 1))

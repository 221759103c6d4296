"""Whether HOST's memory can be registered with an accelerator, for fast copies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from typing import Any

from kvtier import memory
from kvtier.doctor.finding import Finding, ok, skipped, warning

_DEVICES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/renderD*")
_SIZE_BYTES = 16 << 20


def has_accelerator() -> bool:
    """Whether there is a device file of one; nothing is imported for it."""
    return any(glob(each) for each in _DEVICES)


def accelerator_findings() -> Iterator[Finding]:
    """Registers 16 MiB of shared memory where torch has a CUDA or ROCm device."""
    if not has_accelerator():
        yield skipped("GPU", "registration was not looked at: there is no device here")
        return
    if find_spec("torch") is None:
        yield skipped("GPU", "registration was not looked at: this environment has no torch")
        return
    import torch

    runtime: Any = torch
    if not runtime.cuda.is_available():
        yield skipped(
            "GPU", f"registration was not looked at: torch {torch.__version__} finds no CUDA here"
        )
        return
    yield _registered(runtime)


def _registered(torch: Any) -> Finding:
    """Not run on a real device yet."""
    fd = memory.create_memfd("kvtier-doctor", _SIZE_BYTES)
    try:
        view = memory.map_shared(fd, _SIZE_BYTES, writable=True)
        memory.populate(fd, view, 0, _SIZE_BYTES)
        runtime = torch.cuda.cudart()
        torch.cuda.init()
        status = int(runtime.cudaHostRegister(view.ctypes.data, _SIZE_BYTES, 0))
        name = torch.cuda.get_device_name(0)
        if status:
            return warning(
                "GPU",
                f"{name} does not register shared memory (error {status}): copies are pageable",
                "RLIMIT_MEMLOCK of workers and agent; in containers --ipc=host or a shared IPC "
                "namespace",
            )
        runtime.cudaHostUnregister(view.ctypes.data)
        return ok("GPU", f"{name} registers shared memory")
    finally:
        os.close(fd)

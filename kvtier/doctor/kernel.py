"""What the kernel can do that HOST is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from kvtier import memory
from kvtier.doctor.finding import Finding, ok, problem, warning

_SIZE_BYTES = 16 * memory.PAGE_BYTES
_FEATURES: tuple[tuple[str, Callable[[], None], str], ...]


def kernel_findings() -> Iterator[Finding]:
    """Tries each thing as the agent does it."""
    release = os.uname().release
    works = []
    for name, attempt, since in _FEATURES:
        try:
            attempt()
        except OSError as error:
            yield problem(
                "kernel",
                f"{name} does not work on Linux {release}: {error.strerror}",
                f"the agent needs it: Linux {since} or later, and no seccomp profile that forbids "
                "it (containers: the runtime's default is enough)",
            )
        else:
            works.append(name)
    if works:
        yield ok("kernel", f"Linux {release}: {', '.join(works)}")
    if not memory.can_populate():
        yield warning(
            "kernel",
            f"no MADV_POPULATE_WRITE on Linux {release}",
            "Linux 5.14 or later; without it first writes to new extents are slower",
        )


def _share_memory() -> None:
    fd = memory.create_memfd("kvtier-doctor", _SIZE_BYTES)
    try:
        view = memory.map_shared(fd, _SIZE_BYTES, writable=True)
        memory.seal_for_readers(fd)
        view[0] = 1
    finally:
        os.close(fd)


def _give_back() -> None:
    fd = memory.create_memfd("kvtier-doctor", _SIZE_BYTES)
    try:
        view = memory.map_shared(fd, _SIZE_BYTES, writable=True)
        memory.populate(fd, view, 0, _SIZE_BYTES)
        memory.punch_hole(fd, 0, _SIZE_BYTES)
        if memory.allocated_bytes(fd):
            raise OSError(0, "the pages are still counted")
    finally:
        os.close(fd)


def _watch_process() -> None:
    os.close(os.pidfd_open(os.getpid()))


_FEATURES = (
    ("memfd with seals", _share_memory, "5.1"),
    ("hole punching", _give_back, "3.5"),
    ("pidfd", _watch_process, "5.3"),
)

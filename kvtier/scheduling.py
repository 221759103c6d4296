"""Which thread gets a processor before which, as the kernel decides it."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

T = TypeVar("T")

_LOW = 10
_HIGH = -10
#: size, policy (SCHED_OTHER), flags, nice, priority, runtime (the slice), deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine, -1)
_RESET_ON_FORK = 1

_libc = ctypes.CDLL(None, use_errno=True)


def set_time_slice(seconds: float) -> None:
    """How long the calling thread runs, at a time, beside others on its processor; 0: the default.

    A short slice gets the processor sooner after waking (Linux 6.12 and later; others ignore it).
    Threads that it makes have the same.
    """
    _set(os.getpriority(os.PRIO_PROCESS, 0), seconds, 0)


def precede_other_threads(slice_seconds: float) -> bool:
    """Gives the calling thread a high priority from now on, and a time slice; threads that it makes
    have neither. False where that is not permitted: without CAP_SYS_NICE it takes a RLIMIT_NICE
    (`LimitNICE=-10` of systemd)."""
    return _set(_HIGH, slice_seconds, _RESET_ON_FORK)


def may_precede_other_threads() -> bool:
    """Whether that is permitted; the calling thread stays as it is."""
    return _in_a_thread(lambda: precede_other_threads(0.0))


def _set(nice: int, slice_seconds: float, flags: int) -> bool:
    attributes = _SCHED_ATTR.pack(
        _SCHED_ATTR.size, 0, flags, nice, 0, int(slice_seconds * 1e9), 0, 0
    )
    return bool(_libc.syscall(_SYS_SCHED_SETATTR, 0, attributes, 0) == 0)


def at_low_priority(call: Callable[[], T]) -> T:
    """Calls it in this thread, which has a low priority meanwhile.

    Not without CAP_SYS_NICE or a RLIMIT_NICE that allows to return: a thread that stayed low would
    starve beside one that spins, as those of inference engines do.
    """
    if not _is_reversible():
        return call()
    thread_id = threading.get_native_id()
    normal = os.getpriority(os.PRIO_PROCESS, thread_id)
    os.setpriority(os.PRIO_PROCESS, thread_id, normal + _LOW)
    try:
        return call()
    finally:
        os.setpriority(os.PRIO_PROCESS, thread_id, normal)


@cache
def _is_reversible() -> bool:
    def attempt() -> bool:
        thread_id = threading.get_native_id()
        normal = os.getpriority(os.PRIO_PROCESS, thread_id)
        try:
            os.setpriority(os.PRIO_PROCESS, thread_id, normal + 1)
            os.setpriority(os.PRIO_PROCESS, thread_id, normal)
        except OSError:
            return False
        return True

    return _in_a_thread(attempt)


def _in_a_thread(attempt: Callable[[], bool]) -> bool:
    """The answer of a thread that ends: what it has done to itself is gone."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(attempt()), name="kvtier-priority")
    thread.start()
    thread.join()
    return answers == [True]

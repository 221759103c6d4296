"""Work for which nobody waits gets a processor after other work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

T = TypeVar("T")

_NICENESS = 10


def at_low_priority(call: Callable[[], T]) -> T:
    """Calls it in this thread, which has a low priority meanwhile.

    Not without CAP_SYS_NICE or a RLIMIT_NICE that allows to return: a thread that stayed low would
    starve beside one that spins, as those of inference engines do.
    """
    if not _is_reversible():
        return call()
    thread_id = threading.get_native_id()
    normal = os.getpriority(os.PRIO_PROCESS, thread_id)
    os.setpriority(os.PRIO_PROCESS, thread_id, normal + _NICENESS)
    try:
        return call()
    finally:
        os.setpriority(os.PRIO_PROCESS, thread_id, normal)


@cache
def _is_reversible() -> bool:
    """Tried by a thread that ends."""
    answers: list[bool] = []

    def attempt() -> None:
        thread_id = threading.get_native_id()
        normal = os.getpriority(os.PRIO_PROCESS, thread_id)
        try:
            os.setpriority(os.PRIO_PROCESS, thread_id, normal + 1)
            os.setpriority(os.PRIO_PROCESS, thread_id, normal)
        except OSError:
            return
        answers.append(True)

    thread = threading.Thread(target=attempt, name="kvtier-priority")
    thread.start()
    thread.join()
    return bool(answers)

"""The deadline of what this thread does, for all connections that it uses meanwhile.

redis-py makes connections and asks for the topology inside of calls that know no deadline. They
run in the thread that called, so the deadline is kept there.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: No single wait is longer, with or without a deadline.
_MAX_WAIT_SECONDS = 60.0


class _Thread(threading.local):
    deadline = math.inf


_thread = _Thread()


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Within, this thread waits for no server beyond `deadline`, a value of `time.monotonic()`.

    The earliest counts when they are nested.
    """
    before = _thread.deadline
    _thread.deadline = min(before, deadline)
    try:
        yield
    finally:
        _thread.deadline = before


def seconds_left(at_most: float = _MAX_WAIT_SECONDS) -> float:
    """How long the next wait may last. Raises TimeoutError if that is no time at all."""
    left = min(_thread.deadline - time.monotonic(), at_most)
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left

"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.faults.repetitions import QUICK

T = TypeVar("T")

#: In the quick form several tests share the processors: what is late there is not yet wrong.
PATIENCE = 3.0 if QUICK else 1.0


def wait_until(
    condition: Callable[[], T], deadline_seconds: float, interval_seconds: float = 0.005
) -> T:
    """The first true value of the condition. Raises AssertionError at the deadline, which is later
    in the quick form."""
    deadline = time.monotonic() + PATIENCE * deadline_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE * deadline_seconds} s"
        time.sleep(interval_seconds)
    return value

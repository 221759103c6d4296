"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], deadline_seconds: float, interval_seconds: float = 0.005
) -> T:
    """The first true value of the condition. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_seconds} s"
        time.sleep(interval_seconds)
    return value

"""Keeps one thing that happens again and again from filling the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_BURST = 20
_SECONDS = 60.0
_MOST_TEMPLATES = 1024


@dataclass(slots=True)
class _Window:
    begun_at: float
    count: int = 0


class LogLimit(logging.Filter):
    """Lets `burst` messages of one template pass within `seconds`; what a template is filled with
    does not count, and DEBUG is not limited.

    `record.note` of the last one that passes says that others are left out, that of the first one
    after them how many. For a handler; thread-safe.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        burst: int = _BURST,
        seconds: float = _SECONDS,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._burst = burst
        self._seconds = seconds
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        with self._lock:
            count, left_out = self._count((record.name, str(record.msg)))
        if left_out:
            record.note = f" ({left_out} more like this were left out)"
        elif count == self._burst:
            record.note = f" (more like this are left out for up to {self._seconds:g} s)"
        return count <= self._burst

    def _count(self, template: tuple[str, str]) -> tuple[int, int]:
        """How many there are in this window with this one; and, of the first one, how many were
        left out before."""
        now = self._clock()
        before = self._windows.get(template)
        if before is not None and now - before.begun_at < self._seconds:
            before.count += 1
            return before.count, 0
        if len(self._windows) >= _MOST_TEMPLATES:
            self._windows.clear()  # of messages that are no templates
        self._windows[template] = _Window(now, 1)
        return 1, 0 if before is None else max(0, before.count - self._burst)

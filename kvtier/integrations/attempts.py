"""What an engine asks of the agent may fail; the engine never notices but by a miss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kvtier.errors import KvtierError

T = TypeVar("T")

#: What may go wrong without being anybody's mistake: torch raises RuntimeError without memory.
FAILURES = (KvtierError, OSError, MemoryError, RuntimeError)


class Attempts:
    """Logs the first failure in a row as a warning, the others as details. Thread-safe."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._failing = False

    def attempt(self, what: str, action: Callable[[], T]) -> T | None:
        """What `action` returns, or None if it failed: then nothing was, say, `restored`."""
        try:
            result = action()
        except FAILURES as failure:
            level = logging.DEBUG if self._failing else logging.WARNING
            self._log.log(level, "kvtier: nothing is %s: %s", what, failure)
            self._failing = True
            return None
        self._failing = False
        return result

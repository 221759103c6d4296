"""A thread that does one thing after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Hands tasks to `handle`, in order, on a thread that begins with the first one.

    `handle` never raises. With `most_waiting`, tasks beyond so many are dropped.
    """

    def __init__(self, name: str, handle: Callable[[T], None], most_waiting: int = 0) -> None:
        self._name = name
        self._handle = handle
        self._tasks: queue.Queue[T | None] = queue.Queue()
        self._most_waiting = most_waiting
        self._thread: threading.Thread | None = None

    def put(self, task: T) -> None:
        """Never waits. Called by one thread, which also closes."""
        if self._most_waiting and self._tasks.qsize() >= self._most_waiting:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def close(self) -> None:
        """Ends the thread when it has done what was put before."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._handle(task)

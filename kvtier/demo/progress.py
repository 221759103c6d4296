"""What is going on, while it goes on."""

from __future__ import annotations

import time

from rich.console import Console


class Progress:
    """One moving line on a terminal, one line a step elsewhere. A context manager."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._started = time.monotonic()
        self._status = out.status("starting") if out.is_terminal else None

    def step(self, text: str) -> None:
        """Begins a step."""
        if self._status is not None:
            self._status.update(text)
        else:
            self._out.print(f"{time.monotonic() - self._started:5.1f} s  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._out.print(text if self._status else f"{'':9}{text}")

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status is not None:
            self._status.stop()

"""What operators are told of the listeners on TCP."""

from __future__ import annotations

from typing import Protocol


class Listeners(Protocol):
    """The files behind them."""

    @property
    def errors(self) -> list[str]:
        """Of files that have changed and cannot be used."""
        ...

    @property
    def certificate_expires_at(self) -> float | None:
        """Unix seconds; None without TLS, or where that cannot be seen."""
        ...

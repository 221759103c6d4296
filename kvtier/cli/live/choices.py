"""What the operator has chosen to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kvtier.cli.namespaces import label
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session

Row = TypeVar("Row", NamespaceInfo, Session)


@dataclass
class Pane(Generic[Row]):
    """A list that can be sorted and walked through. `orders` are (name, key), largest first."""

    orders: Sequence[tuple[str, Callable[[Row], Any]]]
    name_of: Callable[[Row], str]
    order: int = 0
    is_reversed: bool = False
    selected: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def order_name(self) -> str:
        return self.orders[self.order][0]

    @property
    def index(self) -> int:
        """Of the selected row; 0 if it is gone."""
        names = [self.name_of(row) for row in self.rows]
        return names.index(self.selected) if self.selected in names else 0

    def show(self, rows: Sequence[Row]) -> None:
        """Sorts them anew; equals by name."""
        named = sorted(rows, key=self.name_of)
        _, key = self.orders[self.order]
        self.rows = sorted(named, key=key, reverse=not self.is_reversed)

    def move(self, step: int) -> None:
        if self.rows:
            index = max(0, min(len(self.rows) - 1, self.index + step))
            self.selected = self.name_of(self.rows[index])

    def sort_next(self) -> None:
        self.order = (self.order + 1) % len(self.orders)
        self.show(self.rows)

    def reverse(self) -> None:
        self.is_reversed = not self.is_reversed
        self.show(self.rows)


def _namespaces() -> Pane[NamespaceInfo]:
    return Pane(
        (
            ("used", lambda info: sum(info.used_bytes)),
            ("blocks", lambda info: sum(info.block_count)),
            ("pinned", lambda info: sum(info.pinned_bytes)),
            ("sessions", lambda info: info.session_count),
        ),
        label,
    )


def _sessions() -> Pane[Session]:
    return Pane(
        (
            ("leased", lambda session: session.leased_bytes),
            ("quarantined", lambda session: session.quarantined_bytes),
            ("leases", lambda session: session.lease_count),
            ("age", lambda session: -session.create_time.ToNanoseconds()),
        ),
        lambda session: f"{session.session_id:x}",
    )


_PAGE = 10
_STEPS = {
    "up": -1,
    "down": 1,
    "page up": -_PAGE,
    "page down": _PAGE,
    "home": -(1 << 30),
    "end": 1 << 30,
}


@dataclass
class Choices:
    """Changed by keys."""

    namespaces: Pane[NamespaceInfo] = field(default_factory=_namespaces)
    sessions: Pane[Session] = field(default_factory=_sessions)
    is_on_sessions: bool = False
    opened: str = ""
    """The namespace that is looked into; empty: all of the agent."""
    is_helping: bool = False
    is_over: bool = False

    @property
    def pane(self) -> Pane[NamespaceInfo] | Pane[Session]:
        """The one that keys go to."""
        return self.sessions if self.is_on_sessions or self.opened else self.namespaces

    def press(self, key: str) -> None:
        if self.is_helping:
            self.is_helping = False
            self.is_over = key == "q"
            return
        match key:
            case "q":
                self.is_over = True
            case "?" | "h":
                self.is_helping = True
            case "s":
                self.pane.sort_next()
            case "r":
                self.pane.reverse()
            case "tab":
                self.is_on_sessions = not self.is_on_sessions
            case "enter":
                self._open()
            case "escape":
                self.opened = ""
            case _ if key in _STEPS:
                self.pane.move(_STEPS[key])

    def _open(self) -> None:
        """A session's namespace, where a session is selected."""
        pane = self.pane
        if self.opened or not pane.rows:
            return
        chosen: Any = pane.rows[pane.index]
        self.opened = chosen.namespace if self.is_on_sessions else label(chosen)
        self.is_on_sessions = False

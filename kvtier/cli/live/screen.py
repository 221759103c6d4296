"""The view as a whole, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from kvtier.cli.live import tables
from kvtier.cli.live.choices import Choices
from kvtier.cli.live.feed import Sample
from kvtier.cli.live.rates import Rates
from kvtier.cli.namespaces import label
from kvtier.cli.text import human_seconds, plural
from kvtier.cli.troubles import Trouble, Weight, all_troubles

HELP: Final = """\
What is wrong is named below the heading, the worst first: red needs somebody, yellow
will. `kvtier doctor` says what to do about each.

TIERS     used of capacity; hits: of the blocks looked up in this tier, those found;
          read and write: bytes a second, of HOST those that workers load and store;
          up and down: blocks a second from there to HOST, and from HOST to there
HITS      of all blocks looked up, those that some tier had; a column for each interval,
          the newest at the right
SESSIONS  leased: all that a worker leases, holds, reserves or has in quarantine

  up, down, j, k, page up, page down, g, G    move
  enter          look into the namespace, or the session's namespace
  escape         back
  tab            between namespaces and sessions
  s, r           sort by another column, reverse
  ?              this help
  q              quit

Any key goes back."""

_STYLES: Final = {Weight.PROBLEM: "bold red", Weight.WARNING: "yellow", Weight.NOTE: "dim"}
_TALL: Final = 36
_HEADING_ROWS: Final = 2


@dataclass
class View:
    """What is shown."""

    address: str
    choices: Choices = field(default_factory=Choices)
    sample: Sample | None = None
    complaint: str = ""
    rates: Rates = field(default_factory=Rates)
    chosen_rates: Rates = field(default_factory=Rates)
    marks: tables.Marks = tables.BLOCKS
    _chosen_name: str = ""

    def add(self, sample: Sample) -> None:
        """The newest."""
        self.sample = sample
        self.rates.add(sample.stats)
        if sample.chosen_name != self._chosen_name:
            self.chosen_rates.clear()
            self._chosen_name = sample.chosen_name
        if sample.chosen is not None:
            self.chosen_rates.add(sample.chosen)

    @property
    def troubles(self) -> list[Trouble]:
        sample = self.sample
        found = (
            all_troubles(sample.stats, sample.namespaces, sample.sessions)
            if sample is not None
            else []
        )
        return [Trouble(Weight.PROBLEM, self.complaint), *found] if self.complaint else found


def draw(view: View, width: int, height: int | None) -> RenderableType:
    """As much as fits; without a height all of it."""
    if view.choices.is_helping:
        return Text(HELP, no_wrap=True, overflow="crop")
    parts: list[RenderableType] = [_heading(view)]
    rows = _HEADING_ROWS
    told = _told(view.troubles, width, _most_troubles(height))
    parts += told
    rows += len(told)
    if view.sample is None:
        return Group(*parts)
    body = _body(view, view.sample, width, None if height is None else height - rows - 1)
    footer = [] if height is None else [_footer(view, width)]
    return Group(*parts, *body, *footer)


def _most_troubles(height: int | None) -> int:
    return 1 << 30 if height is None else max(2, height // 7)


def _heading(view: View) -> RenderableType:
    stats = view.sample.stats if view.sample is not None else None
    now = f"{datetime.now():%H:%M:%S}"
    if stats is None:
        return Text(f"kvtier top  {view.address}  {now}\n", no_wrap=True, overflow="crop")
    up = human_seconds(stats.uptime.ToTimedelta().total_seconds())
    text = (
        f"kvtier {stats.version}  up {up}  {plural(stats.session_count, 'session')}  "
        f"{plural(stats.lease_count, 'lease')}  {plural(stats.rejected_count, 'call')} rejected  "
        f"{now}"
    )
    line = Text(text, style="bold", no_wrap=True, overflow="crop")
    return Group(line, Text(view.address, style="dim", no_wrap=True, overflow="ellipsis"))


def _told(troubles: Sequence[Trouble], width: int, most_rows: int) -> list[Text]:
    """A row for each, the worst one in full."""
    if not troubles:
        return [Text("no troubles", style="green")]
    rows: list[Text] = []
    for each in troubles[:most_rows]:
        style = _STYLES[each.weight]
        mark = "" if each.weight is Weight.NOTE else "! "
        text = Text(f"{mark}{each.text}", style=style)
        rows += _wrapped(text, width) if not rows else [_cut(text, width)]
    shown = rows[:most_rows]
    hidden = len(troubles) - most_rows
    if len(rows) > most_rows or hidden > 0:
        more = max(1, len(troubles) - most_rows + 1)
        shown = [*rows[: most_rows - 1], Text(f"  {more} more: kvtier doctor", style="yellow")]
    return shown


def _wrapped(text: Text, width: int) -> list[Text]:
    from rich.console import Console

    return list(text.wrap(Console(width=width), width))


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _body(view: View, sample: Sample, width: int, rows: int | None) -> list[RenderableType]:
    choices = view.choices
    if choices.opened:
        return _inside(view, sample, width, rows)
    parts = [tables.tiers(sample.stats, view.rates, width, view.marks)]
    left = None if rows is None else rows - len(sample.stats.tiers) - 1
    charts = tables.charts(view.rates, sample.stats, width, view.marks, is_tall=_is_tall(rows))
    parts += charts
    left = None if left is None else left - len(charts)
    choices.namespaces.show(sample.namespaces)
    choices.sessions.show(sample.sessions)
    for_sessions = None if left is None else min(len(sample.sessions) + 1, max(2, left * 2 // 5))
    for_namespaces = None if left is None or for_sessions is None else max(2, left - for_sessions)
    if left is not None and for_namespaces is not None:
        spare = for_namespaces - len(sample.namespaces) - 1
        for_sessions = max(2, left - for_namespaces + max(0, spare))
        for_namespaces = left - for_sessions
    is_active = rows is not None
    return [
        *parts,
        tables.namespaces(
            choices.namespaces, width, for_namespaces, is_active and not choices.is_on_sessions
        ),
        tables.sessions(
            choices.sessions, width, for_sessions, is_active and choices.is_on_sessions, _now()
        ),
    ]


def _inside(view: View, sample: Sample, width: int, rows: int | None) -> list[RenderableType]:
    """One namespace."""
    choices = view.choices
    info = next((each for each in sample.namespaces if label(each) == choices.opened), None)
    if info is None:
        return [Text(f"\n{choices.opened} is gone: escape goes back", style="yellow")]
    details = tables.details(info, width)
    parts: list[RenderableType] = [*details]
    left = None if rows is None else rows - len(details)
    if sample.chosen is not None and sample.chosen_name == choices.opened:
        parts.append(tables.tiers(sample.chosen, view.chosen_rates, width, view.marks))
        charts = tables.charts(view.chosen_rates, sample.chosen, width, view.marks, is_tall=True)
        parts += charts
        used = len(sample.chosen.tiers) + 1 + len(charts)
        left = None if left is None else left - used
    choices.sessions.show([each for each in sample.sessions if each.namespace == choices.opened])
    parts.append(tables.sessions(choices.sessions, width, left, rows is not None, _now()))
    return parts


def _is_tall(rows: int | None) -> bool:
    return rows is None or rows >= _TALL


def _footer(view: View, width: int) -> Text:
    choices = view.choices
    sorting = f"s sort (by {choices.pane.order_name})  r reverse"
    keys = (
        f"esc back  {sorting}  ? help  q quit"
        if choices.opened
        else f"enter open  tab {'namespaces' if choices.is_on_sessions else 'sessions'}  "
        f"{sorting}  ? help  q quit"
    )
    text = Text(keys.ljust(width), style="reverse", no_wrap=True)
    text.truncate(width, overflow="crop")
    return text


def _now() -> datetime:
    return datetime.now(UTC)

"""The view as a whole, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.text import Text

from kvtier.cli.live import tables
from kvtier.cli.live.choices import Choices
from kvtier.cli.live.feed import Sample
from kvtier.cli.live.rates import Rates
from kvtier.cli.namespaces import label
from kvtier.cli.text import human_seconds, plural
from kvtier.cli.troubles import Trouble, Weight, all_troubles

HELP: Final = """\
What is wrong is named below the heading, the worst first: red needs somebody,
yellow will. `kvtier doctor` says what to do about each.

TIERS     used, of capacity; hits: of the blocks looked up in this tier
          read, write: bytes a second, of HOST those that workers load and store
          up, down: blocks a second, from there to HOST and from HOST to there
HITS      of all blocks looked up, a column for each interval, the newest right
SESSIONS  leased: what a worker leases, holds, reserves or has in quarantine

  up, down, j, k, page up, page down, g, G    move
  enter          look into the namespace, or the session's namespace
  escape         back
  tab            between namespaces and sessions
  s, r           sort by another column, reverse
  ?              this help
  q              quit

Any key goes back."""

_TALL: Final = 36


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
        if not self.complaint:
            return found
        return [Trouble(Weight.PROBLEM, self.complaint + self._age()), *found]

    def _age(self) -> str:
        if self.sample is None:
            return ""
        said_at = datetime.fromtimestamp(self.sample.stats.sample_time.ToNanoseconds() // 10**9)
        return f"; what is below it said at {said_at:%H:%M:%S}"


def draw(view: View, width: int, height: int | None) -> RenderableType:
    """As much as fits; without a height all of it."""
    if view.choices.is_helping:
        return Text(HELP, no_wrap=True, overflow="crop")
    told = _told(view.troubles, 1 << 16 if height is None else width, _most_troubles(height))
    parts: list[RenderableType] = [*_heading(view, width), *told]
    if view.sample is not None:
        rows = None if height is None else height - len(parts) - 1
        parts += _body(view, view.sample, width, rows)
    if height is None:
        return Group(*parts)
    screen = Layout()
    screen.split_column(Layout(Group(*parts)), Layout(_footer(view, width), size=1))
    return screen


def _most_troubles(height: int | None) -> int:
    return 1 << 30 if height is None else max(2, height // 6)


def _heading(view: View, width: int) -> list[RenderableType]:
    stats = view.sample.stats if view.sample is not None else None
    text = "kvtier top"
    if stats is not None:
        up = human_seconds(stats.uptime.ToTimedelta().total_seconds())
        text = (
            f"kvtier {stats.version}  up {up}  {plural(stats.session_count, 'session')}  "
            f"{plural(stats.lease_count, 'lease')}"
        )
    now = f"{datetime.now():%H:%M:%S}"
    line = Text(f"{text[: width - len(now) - 1]:<{width - len(now)}}{now}", style="bold")
    return [line, _cut(Text(view.address, style="dim"), width)]


def _told(troubles: Sequence[Trouble], width: int, most_rows: int) -> list[Text]:
    """A row for each, the worst one in full."""
    if not troubles:
        return [Text("no troubles", style="green")]
    told: list[list[Text]] = []
    for each in troubles:
        is_note = each.weight is Weight.NOTE
        text = Text(each.text if is_note else f"! {each.text}", style=each.weight.style)
        told.append([_cut(text, width)] if told or is_note else _wrapped(text, width))
    rows = [row for part in told for row in part]
    if len(rows) <= most_rows:
        return rows
    shown = most_rows - 1
    left = len(told) - max(1, shown - len(told[0]) + 1)
    more = [Text(f"  {left} more: kvtier doctor", style="yellow")] if left else []
    return [*rows[: most_rows - len(more)], *more]


def _wrapped(text: Text, width: int) -> list[Text]:
    return list(text.wrap(Console(width=width), width))


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _body(view: View, sample: Sample, width: int, rows: int | None) -> list[RenderableType]:
    if view.choices.opened:
        return _inside(view, sample, width, rows)
    choices, is_tall = view.choices, _is_tall(rows)
    choices.namespaces.show(sample.namespaces)
    choices.sessions.show(sample.sessions)
    charts = tables.charts(view.rates, sample.stats, width, view.marks, is_tall=is_tall)
    gap = [Text()] if is_tall else []
    left = None if rows is None else rows - len(sample.stats.tiers) - 1 - len(charts) - 4 * len(gap)
    upper, lower = _shared(left, len(sample.namespaces) + 1, len(sample.sessions) + 1)
    is_on_sessions = None if rows is None else choices.is_on_sessions
    return [
        *gap,
        tables.tiers(sample.stats, view.rates, width, view.marks),
        *gap,
        *charts,
        *gap,
        tables.namespaces(choices.namespaces, width, upper, is_on_sessions is False),
        *gap,
        tables.sessions(choices.sessions, width, lower, is_on_sessions is True, _now()),
    ]


def _shared(rows: int | None, upper: int, lower: int) -> tuple[int | None, int | None]:
    """Rows of two lists, which want so many: the lower one has two fifths, or what is left over."""
    if rows is None:
        return None, None
    below = min(lower, max(rows * 2 // 5, rows - upper))
    return rows - below, below


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
    where = (
        "esc back"
        if choices.opened
        else "enter open  tab " + ("namespaces" if choices.is_on_sessions else "sessions")
    )
    keys = f"? help  q quit  {where}  {sorting}"
    text = Text(keys.ljust(width), style="reverse", no_wrap=True)
    text.truncate(width, overflow="crop")
    return text


def _now() -> datetime:
    return datetime.now(UTC)

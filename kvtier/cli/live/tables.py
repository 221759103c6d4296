"""The parts of the view, in a given number of columns and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvtier.cli.live.choices import Pane, Row
from kvtier.cli.live.rates import Rates, TierRates, sparkline
from kvtier.cli.namespaces import label
from kvtier.cli.sessions import row as session_row
from kvtier.cli.text import human_bytes, human_seconds, printable
from kvtier.cli.tiers import name_of
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats, TierStats

_WIDE: Final = 110
#: `GPU cpu (emulated)`; a device may have a longer one.
_NAME_WIDTH: Final = 18
_HEADER: Final = "bold cyan"
_NAMES: Final = ("GPU", "HOST", "DISK", "CLUSTER")
_STATE_STYLES: Final = {
    TierStats.ACTIVE: "green",
    TierStats.RECOVERING: "yellow",
    TierStats.DEGRADED: "bold red",
    TierStats.UNAVAILABLE: "bold red",
}


@dataclass(frozen=True)
class Marks:
    """What bars and charts are drawn with."""

    full: str
    empty: str
    levels: str


BLOCKS: Final = Marks("█", "░", "▁▂▃▄▅▆▇█")
ASCII: Final = Marks("#", ".", "_.-:=+*#")


def marks_for(console: Console) -> Marks:
    """Those that its encoding has."""
    return ASCII if console.options.ascii_only else BLOCKS


def _grid(columns: Sequence[str], shares: Sequence[int], *, width: int) -> Table:
    """The first columns are aligned to the left, and share what is left over."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width, header_style=_HEADER)
    for column, share in zip_longest(columns, shares):
        drawn.add_column(
            column,
            justify="left" if share else "right",
            ratio=share,
            no_wrap=True,
            overflow="ellipsis",
        )
    return drawn


def tiers(stats: Stats, rates: Rates, width: int, marks: Marks) -> RenderableType:
    """A row for each, with a bar of what is used."""
    more = ("UP/s", "DOWN/s", "EVICT/s", "WAITING") if width >= _WIDE else ()
    columns = ("TIER", "STATE", "USED", "", "OF", "HITS", "READ/s", "WRITE/s", *more, "QUEUE")
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width, header_style=_HEADER)
    for place, column in enumerate(columns):
        drawn.add_column(
            column,
            justify="left" if place < 3 else "right",
            ratio=1 if place == 2 else None,
            max_width=None if place else _NAME_WIDTH,
            no_wrap=True,
        )
    for tier in stats.tiers:
        drawn.add_row(
            *_tier_cells(tier, rates.of(tier.tier, tier.device), marks, is_wide=bool(more))
        )
    return drawn


def _tier_cells(
    tier: TierStats, rates: TierRates, marks: Marks, *, is_wide: bool
) -> list[RenderableType]:
    state = TierStats.State.Name(tier.state).lower()
    share = tier.used_bytes / tier.capacity_bytes if tier.capacity_bytes else 0.0
    more = (
        (
            _rate(rates.promoted),
            _rate(rates.demoted),
            _rate(rates.evicted),
            human_bytes(tier.pending_bytes),
        )
        if is_wide
        else ()
    )
    return [
        name_of(tier),
        Text(state, style=_STATE_STYLES.get(tier.state, "")),
        _Bar(share, marks),
        f"{share:.0%}" if tier.capacity_bytes else human_bytes(tier.used_bytes),
        human_bytes(tier.capacity_bytes) if tier.capacity_bytes else "no limit",
        _percent(rates.hit_share),
        human_bytes(int(rates.read_bytes)),
        human_bytes(int(rates.written_bytes)),
        *more,
        f"{tier.queue_depth:,}",
    ]


@dataclass(frozen=True)
class _Bar:
    """As wide as its column."""

    share: float
    marks: Marks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        style = "red" if self.share > 1 else "green"
        yield Text(bar(self.share, options.max_width, self.marks), style=style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)


def bar(share: float, width: int, marks: Marks) -> str:
    """Something is never drawn as nothing, nor less than all as all."""
    full = round(min(1.0, share) * width)
    full = max(full, 1) if share > 0 else 0
    full = min(full, width - 1) if share < 1 else full
    return marks.full * full + marks.empty * (width - full)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.1f}"


def charts(
    rates: Rates, stats: Stats, width: int, marks: Marks, *, is_tall: bool
) -> list[RenderableType]:
    """Hits over time: of all tiers, and of each where there is room; lookups do not ask GPU."""
    wanted: list[tuple[str, int | None]] = [("HITS", None)]
    if is_tall and len(stats.tiers) > 1:
        asked = (each.tier for each in stats.tiers if each.tier != block_pb2.TIER_GPU)
        wanted += [(_NAMES[tier - 1], tier) for tier in asked]
    drawn: list[RenderableType] = []
    for name, tier in wanted:
        head = Text(f"{name:<8}", style=_HEADER)
        share = rates.hit_share() if tier is None else rates.of(tier).hit_share
        figure = f"{_percent(share):>6} "
        room = max(1, width - len(head) - len(figure) - 1)
        line = sparkline(rates.hits(room, tier), room, marks.levels)
        drawn.append(Text.assemble(head, figure, (line, "green"), no_wrap=True, overflow="crop"))
    return drawn


def namespaces(
    pane: Pane[NamespaceInfo], width: int, rows: int | None, is_active: bool
) -> RenderableType:
    """Those around the selected one."""
    more = ("MODEL", "DTYPE") if width >= _WIDE else ()
    columns = ("NAMESPACE", *more, "BLOCKS", "USED", "HOST", "DISK", "PINNED", "SESSIONS")
    drawn = _grid(columns, (3, 2, 1)[: 1 + len(more)], width=width)
    for info, style in _window(pane, rows, is_active):
        extra = (
            (printable(each) or "-" for each in (info.spec.model, info.spec.dtype)) if more else ()
        )
        drawn.add_row(
            _named(info),
            *extra,
            f"{sum(info.block_count):,}",
            human_bytes(sum(info.used_bytes)),
            *(human_bytes(_of(info.used_bytes, tier)) for tier in (2, 3)),
            human_bytes(sum(info.pinned_bytes)),
            f"{info.session_count:,}",
            style=style,
        )
    return drawn


def _named(info: NamespaceInfo) -> str:
    """With a mark if others of its name have another layout."""
    return label(info) + (" !" if info.sibling_differences else "")


def sessions(
    pane: Pane[Session], width: int, rows: int | None, is_active: bool, now: datetime
) -> RenderableType:
    """Those around the selected one."""
    columns = ("WORKER", "NAMESPACE", "PID", "AGE", "LEASES", "LEASED", "QUARANTINE")
    drawn = _grid(columns, (2, 3), width=width)
    for session, style in _window(pane, rows, is_active):
        _, namespace, worker, pid, _, age, leases, leased, *_ = session_row(session, now)
        late = Text(human_bytes(session.quarantined_bytes))
        if session.quarantined_bytes:
            late.stylize("bold red")
        drawn.add_row(worker, namespace, pid, age, leases, leased, late, style=style)
    return drawn


def _window(pane: Pane[Row], rows: int | None, is_active: bool) -> Iterator[tuple[Row, str]]:
    """Rows with their styles, below a heading."""
    room = len(pane.rows) if rows is None else max(0, rows - 1)
    first = max(0, min(pane.index - room // 2, len(pane.rows) - room))
    for place in range(first, min(len(pane.rows), first + room)):
        yield pane.rows[place], "reverse" if is_active and place == pane.index else ""


def details(info: NamespaceInfo, width: int) -> list[RenderableType]:
    """What a namespace is, a row each."""
    spec = info.spec
    sizes = "+".join(human_bytes(size) for size in spec.block_bytes)
    facts = [
        (label(info), f"model {spec.model or '-'}, {spec.dtype or 'no dtype'}, "
         f"{spec.block_tokens} tokens a block of {sizes}"),
        ("hashes", spec.hash_algorithm or "-"),
        ("engine", spec.engine or "-"),
    ]  # fmt: skip
    if info.rule:
        facts.append((f"rule {info.rule}", ", ".join(_quotas(info)) or "no limits"))
    if info.sibling_differences:
        facts.append(("differs in", ", ".join(info.sibling_differences)))
    drawn: list[RenderableType] = []
    for name, value in facts:
        style = "yellow" if name == "differs in" else ""
        text = Text.assemble((f"{name}  ", _HEADER), (printable(value), style), no_wrap=True)
        text.truncate(width, overflow="ellipsis")
        drawn.append(text)
    return drawn


def _quotas(info: NamespaceInfo) -> list[str]:
    said = [
        f"{name} {human_bytes(occupied)} of at most {human_bytes(limit)}"
        for name, occupied, limit in zip(
            _NAMES, info.occupied_bytes, info.limit_bytes, strict=False
        )
        if limit
    ]
    if info.HasField("ttl"):
        said.append(f"blocks live {human_seconds(info.ttl.ToTimedelta().total_seconds())}")
    return said


def _of(values: Sequence[int], tier: int) -> int:
    return values[tier - 1] if len(values) >= tier else 0

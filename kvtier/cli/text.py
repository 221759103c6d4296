"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def human_bytes(size_bytes: int) -> str:
    """`1.50 GiB`, `15.0 GiB`, `150 GiB`: three digits that matter."""
    place = max(0, min((size_bytes.bit_length() - 1) // 10, len(_UNITS) - 1))
    size = size_bytes / 1024**place
    digits = 0 if place == 0 or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {_UNITS[place]}"


def human_seconds(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`: the two largest units."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (whole_seconds, "s"))
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def printable(text: str) -> str:
    """What a worker said of itself, without what a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text)


def milliseconds(seconds: float) -> str:
    """`0.45 ms`, `1,200 ms`; `-` for what was not measured."""
    return f"{number(1000 * seconds)} ms" if seconds else "-"


def plural(count: int, noun: str) -> str:
    """`1 block`, `2,000 blocks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: object) -> str:
    """Thousands separated; three digits of a small fraction."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(part: int, whole: int) -> str:
    """`-` where there is nothing to have a part of."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """The first `left` columns are aligned to the left, the others to the right.

    Where there is not enough room, the former are folded; numbers stay in one piece.
    """
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        if place < left:
            drawn.add_column(column, overflow="fold")
        else:
            drawn.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def console() -> Console:
    """Standard output; colours on terminals only, and no folding in pipes."""
    from rich.console import Console

    drawn = Console(highlight=False, markup=False)
    return drawn if drawn.is_terminal else Console(highlight=False, markup=False, width=240)

"""docs/metrics.md: what is written by hand, and the tables below it."""

from __future__ import annotations

from typing import Final

from kvtier.core.latency import BOUNDS_SECONDS
from kvtier.metrics.catalogue import SECTIONS, Kind, Metric

#: What is below it is made here.
MARK: Final = "<!-- Made by `make docs` from kvtier/metrics/catalogue.py: -->\n"


def refreshed(text: str) -> str:
    """A document with other tables below the mark. Raises ValueError if it has no mark."""
    written, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"the line is missing below which tables go: {MARK.strip()}")
    return f"{written}{mark}\n{tables()}"


def tables() -> str:
    sections = "\n".join(_section(name, metrics) for name, metrics in SECTIONS.items())
    bounds = ", ".join(f"{each:g}" for each in BOUNDS_SECONDS)
    return f"{sections}\nThe buckets of histograms end at {bounds} seconds.\n"


def _section(name: str, metrics: tuple[Metric, ...]) -> str:
    rows = [f"## {name}\n", "| metric | labels | |", "|---|---|---|", *map(_row, metrics)]
    return "\n".join(rows) + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    kind = "" if metric.kind is Kind.COUNTER else f" ({metric.kind.value})"
    return f"| `{metric.name}`{kind} | {labels} | {metric.text} |"

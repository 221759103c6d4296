"""Hit rates as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.sim.belady import BELADY
from kvtier.sim.outcome import Outcome

_PANEL_INCHES = (5.5, 4.0)
_DOTS_PER_INCH = 150


def require_plot(file: Path) -> None:
    """Raises ConfigError if a picture cannot be drawn into this file, before hours of replay."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'kvtier[plot]'")
    if not file.resolve().parent.is_dir():
        raise ConfigError(f"--plot {file}: there is no directory {file.resolve().parent}")
    import matplotlib.backends.backend_agg as agg

    known = agg.FigureCanvasAgg.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in known:
        raise ConfigError(f"--plot {file}: end it with one of {', '.join(sorted(known))}")


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """A panel for each trace, a line for each policy, over the share of the unique blocks."""
    from matplotlib.figure import Figure

    traces = list(dict.fromkeys(each.trace for each in outcomes))
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(traces), height), layout="constrained")
    panels = figure.subplots(1, len(traces), squeeze=False)[0]
    for panel, trace in zip(panels, traces, strict=True):
        here = [each for each in outcomes if each.trace == trace]
        for label in dict.fromkeys(map(_label, here)):
            line = sorted(
                (100 * each.capacity_fraction, 100 * each.block_hit_rate)
                for each in here
                if _label(each) == label
            )
            panel.plot(*zip(*line, strict=True), "--o" if label == BELADY else "-o", label=label)
        panel.set(title=trace, xscale="log", xlabel="capacity, % of the unique blocks")
        panel.set_ylabel("hits, % of the requested blocks")
        panel.set_ylim(bottom=0)
        panel.set_xticks(sorted({100 * each.capacity_fraction for each in here}), minor=False)
        panel.set_xticks([], minor=True)
        panel.xaxis.set_major_formatter("{x:.3g}")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(file, dpi=_DOTS_PER_INCH)


def _label(each: Outcome) -> str:
    return each.policy if each.disk_policy is None else f"{each.policy}, DISK {each.disk_policy}"

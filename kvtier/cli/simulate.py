"""`kvtier simulate`: what policies and capacities would have hit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from kvtier.cli.document import print_json
from kvtier.cli.hit_table import hit_tables
from kvtier.cli.options import JsonOption
from kvtier.cli.plan import kv_shape
from kvtier.cli.text import console, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress as Bar

    from kvtier.sim.capacity import Capacity
    from kvtier.sim.costs import Costs
    from kvtier.sim.experiment import Experiment
    from kvtier.sim.outcome import Outcome
    from kvtier.sim.reading import Progress

Parsed = TypeVar("Parsed")

_GIGABYTE: Final = 1e9


def simulate(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="Files of Mooncake, of sessions, or of kvtier record; plain or gzip.",
        ),
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="Of HOST, or with its admission as lru+second_hit; belady is the ceiling. "
            "May be repeated, or a list with commas.",
        ),
    ] = None,
    capacities: Annotated[
        str,
        typer.Option(
            "--capacity",
            metavar="LIST",
            help="Shares of the trace's unique blocks, or sizes: 1%,5%,64GiB.",
        ),
    ] = "1%,5%,20%",
    tiers: Annotated[
        str | None,
        typer.Option(
            "--tiers", metavar="host=..,disk=..", help="Two tiers, in place of --capacity."
        ),
    ] = None,
    disk_policy: Annotated[
        str, typer.Option("--disk-policy", metavar="NAME", help="Of DISK, with --tiers.")
    ] = "lru",
    block_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            help="Regroup blocks to larger ones of so many; those of a recording that does not "
            "say how many tokens they have, have so many.",
        ),
    ] = None,
    block_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of one block as simulated, such as 64MiB."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="In place of --block-bytes, as in kvtier plan."),
    ] = None,
    prefill_tokens_per_second: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="TOKENS", help="What a worker computes: time is reported."),
    ] = None,
    host_gbps: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GB/S", help="10^9 bytes a second read from HOST."),
    ] = None,
    disk_gbps: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GB/S", help="10^9 bytes a second read from DISK."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of policies that sample.")] = 0,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw hit rates over capacities."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded requests through the agent's policies.

    A block is a hit if it and all before it are there. Rates are of all requested blocks; a partial
    block at the end of a request is never a hit.

    Example: kvtier simulate conversation.jsonl.gz --policy hd,lru,belady --capacity 1%,5%,20%
    """
    from kvtier.sim.experiment import Experiment
    from kvtier.sim.plot import plot, require_plot

    chosen = [name.strip() for each in policies or ["hd,lru,belady"] for name in each.split(",")]
    settings = _settings(capacities, tiers)
    experiments = [
        Experiment(policy, setting, disk_policy, seed) for policy in chosen for setting in settings
    ]
    costs = _costs(block_bytes, model, prefill_tokens_per_second, host_gbps, disk_gbps)
    if plot_file is not None:
        require_plot(plot_file)
    outcomes = list(_outcomes(traces, block_tokens, experiments, costs))
    if plot_file is not None:
        plot(outcomes, plot_file)
    if as_json:
        print_json({"results": [asdict(each) for each in outcomes]})
        return
    drawn = console()
    for name, hits in hit_tables(outcomes):
        drawn.print(f"{name}:")
        drawn.print(hits)


def _settings(capacities: str, tiers: str | None) -> list[tuple[Capacity, ...]]:
    """The capacities of the tiers, for each experiment."""
    from kvtier.sim.capacity import parse_capacities, parse_tiers

    if tiers is not None:
        return [tuple(_parse("--tiers", parse_tiers, tiers))]
    return [(each,) for each in _parse("--capacity", parse_capacities, capacities)]


def _parse(option: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _costs(
    block_bytes: str | None,
    model: str | None,
    prefill: float | None,
    host_gbps: float | None,
    disk_gbps: float | None,
) -> Costs:
    from kvtier.config import parse_size
    from kvtier.sim.costs import Costs

    if block_bytes is not None and model is not None:
        raise typer.BadParameter("not together with --block-bytes", param_hint="--model")
    if prefill is None and (host_gbps or disk_gbps):
        raise typer.BadParameter(
            "says nothing without --prefill-tokens-per-second", param_hint="--host-gbps"
        )
    size = None if block_bytes is None else _parse("--block-bytes", parse_size, block_bytes)
    if size == 0:
        raise typer.BadParameter("more than 0", param_hint="--block-bytes")
    return Costs(
        block_bytes=size,
        token_bytes=None if model is None else kv_shape(model).bytes_per_token,
        prefill_tokens_per_second=prefill,
        host_bytes_per_second=None if host_gbps is None else host_gbps * _GIGABYTE,
        disk_bytes_per_second=None if disk_gbps is None else disk_gbps * _GIGABYTE,
    )


def _outcomes(
    paths: Sequence[Path],
    block_tokens: int | None,
    experiments: Sequence[Experiment],
    costs: Costs,
) -> Iterator[Outcome]:
    """One trace is in memory at a time."""
    from kvtier.sim.reading import read_trace

    with _bar() as bar:
        for path in paths:
            trace = read_trace(path, block_tokens, _task(bar, f"{path.name}: reading"))
            known = costs.of(trace)
            if trace.left_out:
                lines = plural(trace.left_out, "line")
                bar.print(f"{path.name}: {lines} left out: not from the beginning of a sequence")
            for each in experiments:
                yield each.run(trace, known, _task(bar, f"{path.name}: {each.policy}"))


@contextmanager
def _bar() -> Iterator[Bar]:
    """On stderr, where that is a terminal; gone in the end."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    stderr = Console(stderr=True)
    with Bar(console=stderr, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar


def _task(bar: Bar, name: str) -> Progress:
    task = bar.add_task(name)

    def show(done: int, whole: int) -> None:
        bar.update(task, completed=done, total=whole, visible=done < whole)

    return show

"""`kvtier top`: an agent at work, live."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import as_document, print_json
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
)
from kvtier.cli.tiers import name_of
from kvtier.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvtier.cli.live.feed import Sample
    from kvtier.cli.live.screen import View
    from kvtier.cli.live.terminal import Terminal
    from kvtier.client.admin import AdminClient

Connect = Callable[[], "AbstractContextManager[AdminClient]"]

_TICK_SECONDS = 1.0


def top(
    interval_seconds: Annotated[
        float,
        typer.Option("--interval", min=0.1, max=60.0, metavar="SECONDS", help="Between samples."),
    ] = 1.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Print it once, over one interval, also without a terminal."),
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Watch an agent at work, full screen; what is wrong stands first.

    Tiers, hits over time, bandwidth, namespaces and sessions.

    ? shows the keys, q quits. It goes on when the agent is gone, says so, and connects again.

    With --json one object, as of --once: stats, namespaces, sessions, rates, troubles.

    Example: kvtier top --once > incident.txt
    """

    def connect() -> AbstractContextManager[AdminClient]:
        return admin(address, timeout_seconds)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may have what the terminal has not
    if once or as_json:
        view = _two_samples(connect, interval_seconds, address)
        if as_json:
            print_json(_document(view))
        else:
            _print(view)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidRequestError(
            "kvtier top draws on a terminal, and there is none: give --once or --json, or use "
            "`kvtier stats`"
        )
    try:
        _watch(connect, interval_seconds, address)
    except (KeyboardInterrupt, EOFError):
        raise typer.Exit from None


def _watch(connect: Connect, interval_seconds: float, address: str) -> None:
    """Until the operator has seen enough, or the terminal is gone (EOFError)."""
    from kvtier.cli.live.feed import Feed
    from kvtier.cli.live.screen import View
    from kvtier.cli.live.tables import marks_for
    from kvtier.cli.live.terminal import Terminal

    with Terminal() as terminal, Feed(connect, interval_seconds, terminal.wake) as feed:
        view = View(address, marks=marks_for(terminal.console))
        while not view.choices.is_over:
            for sample in feed.take():
                view.add(sample)
            view.complaint = feed.complaint()
            feed.namespace = view.choices.opened
            _show(view, terminal)


def _show(view: View, terminal: Terminal) -> None:
    """Draws, and waits for something new: a key, a sample, another size, a second."""
    from kvtier.cli.live.screen import draw

    size = terminal.console.size
    terminal.draw(draw(view, size.width, size.height))
    for key in terminal.wait(_TICK_SECONDS):
        if key == "suspend":
            terminal.suspend()
        view.choices.press(key)


def _two_samples(connect: Connect, interval_seconds: float, address: str) -> View:
    """A view over one interval. Raises KvtierErrors."""
    from kvtier.cli.live.feed import Sample
    from kvtier.cli.live.screen import View

    view = View(address)
    with connect() as client:
        for count, stats in enumerate(client.watch_stats(interval_seconds=interval_seconds), 1):
            sample: Sample = Sample(stats, client.list_namespaces(), client.list_sessions())
            view.add(sample)
            if count == 2:
                break
    return view


def _print(view: View) -> None:
    from kvtier.cli.live.screen import draw
    from kvtier.cli.live.tables import marks_for
    from kvtier.cli.text import console

    out = console()
    view.marks = marks_for(out)
    width = out.width if out.is_terminal else 120
    out.print(draw(view, width, None))


def _document(view: View) -> dict[str, Any]:
    from dataclasses import asdict

    assert view.sample is not None
    stats = view.sample.stats
    return {
        "stats": as_document(stats),
        "namespaces": [as_document(each) for each in view.sample.namespaces],
        "sessions": [as_document(each) for each in view.sample.sessions],
        "hit_share": view.rates.hit_share(),
        "rates": {
            f"TIER_{name_of(each)}": asdict(view.rates.of(each.tier, each.device))
            for each in stats.tiers
        },
        "troubles": [
            {"weight": each.weight.name.lower(), "text": each.text, "advice": each.advice}
            for each in view.troubles
        ],
    }

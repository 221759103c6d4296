"""The command line's tree."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli import (
    agent,
    bench,
    cluster,
    config,
    demo,
    doctor,
    drain,
    events,
    evict,
    explain,
    flush,
    invalidate,
    ls,
    namespaces,
    pin,
    pins,
    plan,
    record,
    requests,
    resume,
    scrub,
    sessions,
    simulate,
    stats,
    tier,
    tiers,
    token,
    top,
    unpin,
    version,
    warm,
)
from kvtier.cli.remote import add_options

HELP = """A KV-cache agent for LLM inference workers.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 agent not reached.
"""


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        version.version()
        raise typer.Exit


app = typer.Typer(
    name="kvtier",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=HELP)
def _main(
    _: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("agent")(agent.agent)
app.command("stats")(stats.stats)
app.command("top")(top.top)
app.command("tiers")(tiers.tiers)
app.command("namespaces")(namespaces.namespaces)
app.command("sessions")(sessions.sessions)
app.command("ls")(ls.ls)
app.command("requests")(requests.requests)
app.command("explain")(explain.explain)
app.command("record")(record.record)
app.command("events")(events.events)
app.command("evict")(evict.evict)
app.command("invalidate")(invalidate.invalidate)
app.command("pin")(pin.pin)
app.command("unpin")(unpin.unpin)
app.command("pins")(pins.pins)
app.command("warm")(warm.warm)
app.command("flush")(flush.flush)
app.command("scrub")(scrub.scrub)
app.command("drain")(drain.drain)
app.command("resume")(resume.resume)
app.add_typer(tier.app, name="tier")
app.add_typer(cluster.app, name="cluster")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("token")(token.token)
app.command("version")(version.version)
add_options(app)

"""`kvtier doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.document import print_json
from kvtier.cli.exit import ExitCode, message
from kvtier.cli.options import ConfigOption, JsonOption, SetOption
from kvtier.cli.text import console, plural
from kvtier.cli.troubles import Weight, all_troubles
from kvtier.errors import AgentUnavailableError, ConfigError, KvtierError
from kvtier.sockets import ADMIN_SOCKET

if TYPE_CHECKING:
    from kvtier.config import AgentConfig
    from kvtier.doctor.finding import Finding
    from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Stats

_TIMEOUT_SECONDS = 5.0


def doctor(
    path: ConfigOption = None,
    overrides: SetOption = None,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Without measuring devices (up to 1 s and 64 MiB each).")
    ] = False,
    as_json: JsonOption = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="KVTIER_ADMIN_ADDRESS",
            metavar="TARGET",
            help="The agent's admin socket; else that of the configuration's socket_dir.",
        ),
    ] = None,
) -> None:
    """Look at machine, configuration, engines and the running agent; say what to do.

    The worst comes first: problems stop or cripple the agent, warnings cost speed or hits. Run it
    as the agent's user, with its configuration, and in its container: limits are those of whoever
    asks. Without a running agent it tells whether one would start, and how well.

    Exit code 0 without problems, 1 with one.

    Example: kvtier doctor --config /etc/kvtier/agent.yaml
    """
    found = _findings(path, overrides, address, is_quick=is_quick)
    count = sum(each.verdict == "problem" for each in found)
    if as_json:
        from dataclasses import asdict

        print_json({"problems": count, "findings": [asdict(each) for each in found]})
    else:
        _print(found)
    if count:
        raise typer.Exit(ExitCode.FAILED)


def _findings(
    path: ConfigOption, overrides: SetOption, address: str | None, *, is_quick: bool
) -> list[Finding]:
    from kvtier.config import AgentConfig
    from kvtier.config.load import load_config
    from kvtier.doctor.examination import examine, worst_first
    from kvtier.doctor.finding import problem

    found: list[Finding] = []
    chosen: set[str] = set()
    try:
        loaded = load_config(path, os.environ, overrides or ())
        config = loaded.config
        chosen = {key for key, origin in loaded.origin.items() if origin != "default"}
    except ConfigError as error:
        advice = "mend it: `kvtier config check`; what follows is of the defaults"
        found.append(problem("configuration", message(error), advice))
        config = AgentConfig()
    stats, namespaces, of_agent = _agent(address, config)
    found += of_agent
    found += examine(config, chosen, stats, namespaces, is_measured=not is_quick)
    return worst_first(iter(found))


def _agent(
    address: str | None, config: AgentConfig
) -> tuple[Stats | None, list[NamespaceInfo], list[Finding]]:
    """What it says of itself, and what of that is wrong."""
    from kvtier.doctor.finding import Finding, Verdict, ok, problem, skipped

    target = address or f"unix:{config.socket_dir / ADMIN_SOCKET}"
    try:
        with admin(target, _TIMEOUT_SECONDS) as client:
            stats, namespaces = client.get_stats(), client.list_namespaces()
            sessions = client.list_sessions()
    except AgentUnavailableError as error:
        if address is None:
            return None, [], [skipped("agent", f"none runs at {target}")]
        return None, [], [problem("agent", message(error), "start it, and see its log")]
    except KvtierError as error:
        advice = "see whether it is stopped (`ps`), and its log; it is to be restarted if it hangs"
        return None, [], [problem("agent", message(error), advice)]
    verdicts = {
        Weight.PROBLEM: Verdict.PROBLEM,
        Weight.WARNING: Verdict.WARNING,
        Weight.NOTE: Verdict.OK,
    }
    found = [
        Finding(verdicts[each.weight], "agent", each.text, each.advice)
        for each in all_troubles(stats, namespaces, sessions)
    ]
    count = plural(len(sessions), "session"), plural(len(namespaces), "namespace")
    found.append(ok("agent", f"version {stats.version} answers: {', '.join(count)}"))
    return stats, namespaces, found


_STYLES = {"problem": "bold red", "warning": "yellow", "ok": "green", "skipped": "dim"}


def _print(found: Sequence[Finding]) -> None:
    from rich.text import Text

    out = console()
    counts = [sum(each.verdict == name for each in found) for name in ("problem", "warning")]
    out.print(f"{plural(counts[0], 'problem')}, {plural(counts[1], 'warning')}")
    for each in found:
        verdict = each.verdict.value
        line = Text.assemble(
            (f"{verdict:<9}", _STYLES[verdict]), (each.subject, "bold"), f": {each.found}"
        )
        out.print(line)
        if each.advice and verdict != "ok":
            out.print(Text(f"         do: {each.advice}"))

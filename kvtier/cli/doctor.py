"""`kvtier doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin, listener_pid
from kvtier.cli.document import print_json
from kvtier.cli.exit import ExitCode, message
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    ConfigOption,
    JsonOption,
    SetOption,
    TimeoutOption,
)
from kvtier.cli.text import console, plural
from kvtier.cli.troubles import Weight, all_troubles
from kvtier.errors import AgentUnavailableError, ConfigError, DeadlineExceededError
from kvtier.sockets import ADMIN_SOCKET

if TYPE_CHECKING:
    from kvtier.config import AgentConfig
    from kvtier.doctor.finding import Finding
    from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Stats


def doctor(
    path: ConfigOption = None,
    overrides: SetOption = None,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Without measuring devices (up to 1 s and 64 MiB each).")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Look at machine, configuration, engines and the agent.

    Says of each what was found, and what to do.

    The worst comes first: problems stop or cripple the agent, warnings cost speed or hits. Run it
    as the agent's user, with its configuration, and in its container. Without a running agent it
    tells whether one would start, and how well; limits are then those of whoever asks.

    Without an address it looks for the agent in the configuration's socket_dir.

    Exit code 0 without problems, 1 with one.

    Example: kvtier doctor --config /etc/kvtier/agent.yaml
    """
    from kvtier.doctor.examination import examine, worst_first

    config, chosen, found = _configuration(path, overrides)
    is_named = address != DEFAULT_ADDRESS
    target = address if is_named else f"unix:{config.socket_dir / ADMIN_SOCKET}"
    stats, namespaces, of_agent = _agent(target, timeout_seconds, is_wanted=is_named)
    pid = listener_pid(target)
    found += of_agent
    found += examine(config, chosen, stats, namespaces, pid, is_measured=not is_quick)
    _report(worst_first(found), as_json=as_json)


def _report(found: Sequence[Finding], *, as_json: bool) -> None:
    """Prints it, and exits with 1 if there is a problem."""
    count = sum(each.verdict == "problem" for each in found)
    if as_json:
        from dataclasses import asdict

        print_json({"problems": count, "findings": [asdict(each) for each in found]})
    else:
        _print(found)
    if count:
        raise typer.Exit(ExitCode.FAILED)


def _configuration(
    path: ConfigOption, overrides: SetOption
) -> tuple[AgentConfig, set[str], list[Finding]]:
    """With the keys that have not their defaults, and what is wrong with it."""
    from kvtier.config import AgentConfig, load_config
    from kvtier.doctor.finding import problem

    try:
        loaded = load_config(path, os.environ, overrides or ())
    except ConfigError as error:
        advice = "mend it, and see `kvtier config check`; what follows is of the defaults"
        return AgentConfig(), set(), [problem("configuration", message(error), advice)]
    chosen = {key for key, origin in loaded.origin.items() if origin != "default"}
    return loaded.config, chosen, []


def _agent(
    target: str, timeout_seconds: float, *, is_wanted: bool
) -> tuple[Stats | None, list[NamespaceInfo], list[Finding]]:
    """What it says of itself, and what of that is wrong; none is no problem, unless wanted."""
    from kvtier.doctor.finding import Finding, Verdict, ok, problem, skipped

    try:
        with admin(target, timeout_seconds) as client:
            stats, namespaces = client.get_stats(), client.list_namespaces()
            sessions = client.list_sessions()
    except DeadlineExceededError as error:
        advice = "see whether it is stopped (`ps`) or busy, and its log; restart it if it hangs"
        return None, [], [problem("agent", message(error), advice)]
    except AgentUnavailableError as error:
        if not is_wanted:
            return None, [], [skipped("agent", f"none runs at {target}")]
        return None, [], [problem("agent", message(error), "start it, and see its log")]
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

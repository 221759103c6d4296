"""docs/cli.md, from the command line itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from kvtier.cli.app import app
from kvtier.cli.exit import ExitCode
from tests.docs.markdown import cell, escaped

_HEAD = """# The command line

Generated from `kvtier --help` by `make docs`; what is said here, each command says with `--help`.

"""
_EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed, or the answer is no: damage was found, a question was declined",
    ExitCode.USAGE: "wrong usage or configuration; the message names the option or the key",
    ExitCode.UNREACHABLE: "the agent was not reached, or did not answer in time",
}
_COMPLETION = """
`kvtier --install-completion` makes bash, zsh and fish complete verbs, options, and the namespaces
of the agent that runs. Colours are only on terminals, and never with `NO_COLOR`. With `--json` a
command prints one object, those with progress one a line, with the fields of [the API](api.md):
numbers are plain, bytes are in hexadecimal. Commands that destroy something say what, and ask;
`--yes` is for scripts.

`--address` names the admin socket of the agent, as does `KVTIER_ADMIN_ADDRESS`; else it is that of
this user's agent: `/run/kvtier/admin.sock` for root, `$XDG_RUNTIME_DIR/kvtier/admin.sock` for
others.
"""
#: What typer says of arguments beside their names.
_TYPE = re.compile(r" <(list\[)?(str|path)\]?>$")
#: Where the default depends on who runs it.
_OWN_DEFAULTS = {"address": "this user's agent"}


def page() -> str:
    """All of it."""
    root: Any = typer.main.get_command(app)
    found = list(commands(root))
    parts = [_HEAD, "| exit code | |\n|---|---|\n"]
    parts += [f"| {code.value} | {_EXIT_CODES[code]} |\n" for code in ExitCode]
    parts += [_COMPLETION, "\n| command | |\n|---|---|\n"]
    for path, command in found:
        first = (command.help or "").partition("\n")[0]
        parts.append(f"| [`{' '.join(path)}`](#{'-'.join(path)}) | {first} |\n")
    parts += [_section(path, command) for path, command in found]
    return "".join(parts)


def commands(
    command: Any, path: tuple[str, ...] = ("kvtier",)
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Those that do something, by their words."""
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from commands(child, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> str:
    text = inspect.cleandoc(command.help or "")
    body, _, example = text.partition("Example: ")
    context = command.context_class(command, info_name=" ".join(path))
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    parts = [f"\n## {' '.join(path)}\n\n", f"```\n{usage}\n```\n\n", escaped(body.strip()), "\n"]
    if example:
        parts.append(f"\nExample: `{' '.join(example.split())}`\n")
    rows = [_row(each, context) for each in command.params if each.name != "help"]
    if rows:
        parts += ["\n| | |\n|---|---|\n", *rows]
    return "".join(parts)


def _row(parameter: Any, context: Any) -> str:
    if parameter.name in _OWN_DEFAULTS:
        parameter.show_default = _OWN_DEFAULTS[parameter.name]
    record = parameter.get_help_record(context)
    if record is None:
        return ""
    name, text = record
    name = _TYPE.sub("", name).replace("|", "\\|")
    return f"| `{name}` | {cell(text)} |\n"

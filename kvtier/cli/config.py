"""`kvtier config`: what the agent would run with."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import typer

from kvtier.cli.document import print_json
from kvtier.cli.options import ConfigOption, JsonOption, SetOption
from kvtier.cli.text import console, table

if TYPE_CHECKING:
    from kvtier.config import LoadedConfig

app = typer.Typer(help="Check and show the agent's configuration.", no_args_is_help=True)


@app.command("check")
def check(path: ConfigOption = None, overrides: SetOption = None) -> None:
    """Say whether the configuration is valid."""
    loaded = _load(path, overrides)
    changed = sum(origin != "default" for origin in loaded.origin.values())
    typer.echo(f"configuration is valid: {changed} of {len(loaded.origin)} keys are set")


@app.command("show")
def show(
    path: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Print every key, its value, and where that came from."""
    loaded = _load(path, overrides)
    values = loaded.config.model_dump(mode="json", exclude_none=False)
    if as_json:
        print_json({"config": values, "origin": loaded.origin})
        return
    rows = [(key, _value(values, key), origin) for key, origin in loaded.origin.items()]
    console().print(table(("key", "value", "from"), rows, left=3))


def _load(path: ConfigOption, overrides: SetOption) -> LoadedConfig:
    from kvtier.config import load_config

    return load_config(path, os.environ, overrides or ())


def _value(values: Any, key: str) -> str:
    for part in key.split("."):
        values = values[part]
    return values if isinstance(values, str) else json.dumps(values)

"""`kvtier config`: what the agent would run with."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtier.cli.document import print_json
from kvtier.cli.options import ConfigOption, JsonOption, SetOption
from kvtier.cli.text import console, table

if TYPE_CHECKING:
    from kvtier.config import LoadedConfig

app = typer.Typer(help="Check and show the agent's configuration.", no_args_is_help=True)


@app.command("check")
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The YAML file, as with --config.")
    ] = None,
    path: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the configuration is valid, and what was judged.

    Exit code 2 if it is not, with the key that is wrong.

    Example: kvtier config check /etc/kvtier/agent.yaml
    """
    if file is not None and path is not None:
        raise typer.BadParameter("name the file once, as FILE or with --config")
    loaded = _load(file or path, overrides)
    _check_group(loaded)
    _check_listen(loaded)
    if as_json:
        judged = None if loaded.file is None else str(loaded.file)
        keys = [key for key, origin in loaded.origin.items() if origin != "default"]
        print_json({"file": judged, "keys_set": keys})
        return
    typer.echo(f"{_source(loaded)}: {_changed(loaded)}")


def _check_group(loaded: LoadedConfig) -> None:
    """Groups are the machine's: a file may be right here and wrong elsewhere."""
    from kvtier.errors import ConfigError

    group = loaded.config.socket_group
    if not isinstance(group, str):
        return
    try:
        grp.getgrnam(group)
    except KeyError as error:
        raise ConfigError(
            f"{loaded.origin['socket_group']}: socket_group: there is no group {group!r}"
        ) from error


def _check_listen(loaded: LoadedConfig) -> None:
    """Whether the files that it names can be used, by whoever runs this."""
    from kvtier.config.certificate_files import load_certificates
    from kvtier.config.credentials_file import load_credentials

    listen = loaded.config.listen
    load_certificates(listen)
    if listen.credentials_file is not None:
        load_credentials(listen.credentials_file)


def _source(loaded: LoadedConfig) -> str:
    from kvtier.config import SYSTEM_FILE

    if loaded.file is None:
        return f"no file ({SYSTEM_FILE} does not exist)"
    return f"{loaded.file} is valid"


def _changed(loaded: LoadedConfig) -> str:
    changed = sum(origin != "default" for origin in loaded.origin.values())
    if not changed:
        return f"all {len(loaded.origin)} keys have their defaults"
    return f"{changed} of {len(loaded.origin)} keys are set"


@app.command("show")
def show(
    path: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Print every key, its value, and where that came from.

    Example: kvtier config show --set movers=4
    """
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

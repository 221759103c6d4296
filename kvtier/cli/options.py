"""Options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from kvtier.sockets import ADMIN_SOCKET, default_address

DEFAULT_ADDRESS: Final = default_address(os.environ, ADMIN_SOCKET)
DEFAULT_TIMEOUT_SECONDS: Final = 5.0

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="KVTIER_ADMIN_ADDRESS",
        metavar="TARGET",
        help="The agent's admin socket, as unix:PATH or an absolute path.",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="For each call.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="The YAML file; else $KVTIER_CONFIG, else /etc/kvtier/agent.yaml if it exists.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key; may be repeated."),
]

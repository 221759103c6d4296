"""`kvtier agent`: run the daemon in the foreground."""

from __future__ import annotations

import os

import typer

from kvtier.cli.options import ConfigOption, SetOption


def agent(path: ConfigOption = None, overrides: SetOption = None) -> None:
    """Run the agent of this node, until SIGTERM or SIGINT.

    Example: kvtier agent --set tiers.host.capacity=16GiB --set log.format=json
    """
    from kvtier.config import load_config
    from kvtier.daemon import run

    loaded = load_config(path, os.environ, overrides or ())
    raise typer.Exit(run(loaded.config))

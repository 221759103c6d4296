"""`kvtier demo`: the main job, on real text, in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli.exit import exit_on_sigterm


def demo(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="A Hugging Face causal language model; else a small one is made from a seed.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=64, metavar="COUNT", help="Length of the prompt that is cached.")
    ] = 4096,
) -> None:
    """Show the main job: an agent and four workers.

    The first worker computes a prompt and stores it; the second finds and loads it; the third
    asks about a longer conversation that begins with it. Then the agent is stopped and started,
    and the fourth loads the prompt from DISK. Exit code 1 if any token differs from a run without
    kvtier, or if a worker finds nothing.
    """
    from kvtier.demo import run_demo

    exit_on_sigterm()
    raise typer.Exit(run_demo(model=model, tokens=tokens))

"""`kvtier demo`: the main job, on real text, in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtier.cli.exit import exit_on_sigterm
from kvtier.cli.options import JsonOption
from kvtier.errors import ConfigError


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
    nodes: Annotated[
        int, typer.Option(min=1, max=2, metavar="COUNT", help="Agents that share prefixes: 1 or 2.")
    ] = 1,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --nodes 2: a Redis or Valkey that is running, as in tiers.cluster.url; "
            "else the demo starts one.",
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="With one node: a tier on the device where workers compute, as well: cuda:0 and "
            "so on, or cpu, which emulates one.",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the main job: an agent, or two, and four workers.

    The first worker computes a prompt and stores it; the second finds and loads it; the third
    asks about a longer conversation that begins with it. Then the agent is stopped and started,
    and the fourth loads the prompt from DISK.

    With two nodes the second worker is on the other node and loads from CLUSTER. Then the server
    of CLUSTER is killed, and both nodes go on with what they have. A server given by --url is not
    stopped, and what was written to it is removed.

    With --gpu, blocks that a worker has loaded from HOST are on the device afterwards, and the
    third worker loads them there.

    With --json, what each worker did is printed at the end; the story goes to stderr.

    Exit code 1 if any token differs from a run without kvtier, or if a worker finds nothing.

    Example: kvtier demo --nodes 2 --url redis://127.0.0.1:6379
    """
    from kvtier.demo import run_demo

    if url is not None and nodes == 1:
        raise ConfigError("--url is for two nodes: add --nodes 2")
    if gpu and nodes == 2:
        raise ConfigError("--gpu is for one node: leave --nodes 2 out")
    exit_on_sigterm()
    raise typer.Exit(
        run_demo(model=model, tokens=tokens, nodes=nodes, url=url, device=gpu, as_json=as_json)
    )

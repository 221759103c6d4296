"""`kvtier bench`: how fast copies, streams, metadata, policies, GPU, DISK and CLUSTER are here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from kvtier.cli.document import print_json
from kvtier.cli.exit import exit_on_sigterm
from kvtier.cli.options import JsonOption
from kvtier.cli.text import console, number, table
from kvtier.errors import ConfigError

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

_MIN_BLOCK_BYTES: Final = 4096

BlockBytesOption = Annotated[
    str, typer.Option("--block-bytes", metavar="SIZE", help="Such as 2MiB; at least 4KiB.")
]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, max=8192, metavar="COUNT", help="Blocks of one call.")
]
SecondsOption = Annotated[
    float, typer.Option("--seconds", min=0.1, metavar="SECONDS", help="For each measurement.")
]


@app.command("host")
def host(
    block_bytes: BlockBytesOption = "2MiB",
    batch: BatchOption = 16,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Measure stores and loads through shared memory.

    Example: kvtier bench host --batch 256
    """
    from kvtier.bench.host import run

    size_bytes = _block_bytes(block_bytes)
    exit_on_sigterm()
    _print(run(block_bytes=size_bytes, batch=batch, seconds=seconds), as_json)


@app.command("metadata")
def metadata(
    blocks: Annotated[
        int, typer.Option("--blocks", min=1000, metavar="COUNT", help="Blocks in the index.")
    ] = 1_000_000,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Measure the index: memory, inserts, lag of the loop.

    Example: kvtier bench metadata --blocks 100000
    """
    from kvtier.bench.metadata import run

    exit_on_sigterm()
    _print(run(blocks=blocks, seconds=seconds), as_json)


@app.command("policies")
def policies(
    blocks: Annotated[
        list[int] | None,
        typer.Option(
            "--blocks",
            min=1000,
            metavar="COUNT",
            help="Blocks in the tier, may be repeated; else 10000, 100000 and 1000000.",
        ),
    ] = None,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Measure eviction policies.

    One operation is a block asked for, used, stored or evicted.

    Example: kvtier bench policies --blocks 100000 --json
    """
    from kvtier.bench.policies import SIZES, run

    exit_on_sigterm()
    measured = run(blocks or SIZES, seconds=seconds)
    if as_json:
        print_json(measured)
        return
    rows = [
        (each["policy"], number(each["blocks"]), number(each["operations_per_second"]))
        for each in measured["results"]
    ]
    console().print(table(("policy", "blocks", "operations a second"), rows))


@app.command("gpu")
def gpu(
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", help="As cuda:0, or cpu, which emulates one."),
    ] = "cpu",
    block_bytes: BlockBytesOption = "2MiB",
    batch: BatchOption = 64,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Measure copies to a device and on it, against plain ones.

    Example: kvtier bench gpu --device cuda:0 --json
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ConfigError("this needs PyTorch: pip install 'kvtier[gpu]'")
    from kvtier.bench.gpu import run

    size_bytes = _block_bytes(block_bytes)
    exit_on_sigterm()
    _print(run(device, block_bytes=size_bytes, batch=batch, seconds=seconds), as_json)


@app.command("disk")
def disk(
    path: Annotated[
        Path,
        typer.Option(
            "--path",
            metavar="DIR",
            exists=True,
            file_okay=False,
            writable=True,
            help="Where to measure: on the device in question, with some GiB free.",
        ),
    ],
    block_bytes: BlockBytesOption = "2MiB",
    batch: BatchOption = 64,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Measure DISK against plain direct I/O.

    Stores, loads, the start of an agent, and HOST beside it.

    Example: kvtier bench disk --path /mnt/nvme --seconds 2
    """
    from kvtier.bench.disk import run

    size_bytes = _block_bytes(block_bytes)
    if size_bytes % _MIN_BLOCK_BYTES:
        raise typer.BadParameter("a multiple of 4KiB", param_hint="--block-bytes")
    exit_on_sigterm()
    _print(run(path, block_bytes=size_bytes, batch=batch, seconds=seconds), as_json)


@app.command("cluster")
def cluster(
    url: Annotated[
        str,
        typer.Option(
            "--url", metavar="URL", help="redis://HOST:PORT or unix:///PATH; else one of its own."
        ),
    ] = "embedded",
    block_bytes: BlockBytesOption = "2MiB",
    batch: BatchOption = 16,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Measure a Redis or Valkey against bare sockets.

    Blocks stored and fetched, and asking which there are.

    Example: kvtier bench cluster --url redis://127.0.0.1:6379
    """
    from kvtier.bench.cluster import run

    size_bytes = _block_bytes(block_bytes)
    exit_on_sigterm()
    _print(run(url, block_bytes=size_bytes, batch=batch, seconds=seconds), as_json)


@app.command("stream")
def stream(
    block_bytes: BlockBytesOption = "2MiB",
    batch: BatchOption = 32,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Measure streams, for workers without shared memory.

    Blocks over gRPC, against a bare socket.

    Example: kvtier bench stream --batch 16
    """
    from kvtier.bench.stream import run

    size_bytes = _block_bytes(block_bytes)
    exit_on_sigterm()
    _print(run(block_bytes=size_bytes, batch=batch, seconds=seconds), as_json)


def _block_bytes(text: str) -> int:
    from kvtier.config import parse_size

    try:
        size_bytes = parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--block-bytes") from error
    if size_bytes < _MIN_BLOCK_BYTES:
        raise typer.BadParameter("at least 4KiB", param_hint="--block-bytes")
    return size_bytes


def _print(measured: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print_json(measured)
        return
    rows = ((name, number(value)) for name, value in measured.items())
    console().print(table(("measured", "value"), rows))

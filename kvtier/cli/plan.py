"""`kvtier plan`: how much KV cache a model takes, and how large tiers should be."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.document import print_json
from kvtier.cli.options import JsonOption
from kvtier.cli.text import console, human_bytes, table

if TYPE_CHECKING:
    from kvtier.planning.kv_shape import KvShape
    from kvtier.planning.sizing import Load, Plan

_SESSIONS_PER_REQUEST = 10


def plan(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|PATH",
            help="A known model (see --models), or the config.json of one for Transformers.",
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", min=1, metavar="TOKENS", help="Of one session.")
    ] = 8192,
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="COUNT", help="Requests that run at a time.")
    ] = 16,
    sessions: Annotated[
        int | None,
        typer.Option(min=1, metavar="COUNT", help="Sessions that live; else 10 times --batch."),
    ] = None,
    reuse: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of the sessions, those that come back soon."
        ),
    ] = 0.25,
    shared: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of the context, what all sessions have in common."
        ),
    ] = 0.0,
    block_tokens: Annotated[
        int, typer.Option(min=1, metavar="TOKENS", help="Of a block: the engine's.")
    ] = 16,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the KV cache, such as fp8; else the model's."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="In place of --model.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="With --layers: KV heads of a layer.")
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="With --layers: numbers of a head.")
    ] = None,
    mla_dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            help="With --layers: latent attention; kv_lora_rank + qk_rope_head_dim.",
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(min=0, metavar="TOKENS", help="With --layers: of sliding-window attention."),
    ] = 0,
    window_layers: Annotated[
        int | None,
        typer.Option(min=0, metavar="COUNT", help="With --window: so many layers; else all."),
    ] = None,
    list_models: Annotated[
        bool, typer.Option("--models", help="List the known models, and do nothing else.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Size tiers for a model and a load.

    HOST gets room for what runs and what comes back soon, DISK for all sessions.

    Example: kvtier plan --model llama-3-8b --context 8192 --batch 16
    """
    from kvtier.planning.sizing import Load
    from kvtier.planning.sizing import plan as make_plan

    if list_models:
        _list_models(as_json)
        return
    if (model is None) == (layers is None):
        raise typer.BadParameter("give either --model, or --layers and what a layer keeps")
    shape = (
        kv_shape(model)
        if model is not None
        else _described(layers, kv_heads, head_dim, mla_dim, window, window_layers)
    )
    if dtype is not None:
        shape = replace(shape, dtype=_dtype(dtype))
    if context < block_tokens:
        raise typer.BadParameter("no full block: less than --block-tokens", param_hint="--context")
    live = sessions or _SESSIONS_PER_REQUEST * batch
    load = Load(context, batch, live, reuse, shared, block_tokens)
    made = make_plan(shape, load)
    if as_json:
        print_json({"model": model, **asdict(shape), **asdict(load), **asdict(made)})
        return
    _draw(model or "this model", shape, load, made)


def kv_shape(model: str) -> KvShape:
    """Of a model that is known by name, or of a `config.json`.

    Raises ConfigError if there is neither.
    """
    from kvtier.planning.hf_config import read_hf_config
    from kvtier.planning.models import find_model

    path = Path(model)
    return read_hf_config(path) if path.suffix == ".json" or path.exists() else find_model(model)


def _described(
    layers: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    mla_dim: int | None,
    window: int,
    window_layers: int | None,
) -> KvShape:
    from kvtier.planning.kv_shape import heads, latent

    assert layers is not None
    if mla_dim is not None:
        if kv_heads or head_dim or window:
            raise typer.BadParameter(
                "not together with --kv-heads, --head-dim or --window", param_hint="--mla-dim"
            )
        return latent(layers, mla_dim)
    if kv_heads is None or head_dim is None:
        raise typer.BadParameter(
            "needs --kv-heads and --head-dim, or --mla-dim", param_hint="--layers"
        )
    if window_layers is not None and (window_layers > layers or not window):
        raise typer.BadParameter(
            "needs --window, and at most as many as --layers", param_hint="--window-layers"
        )
    return heads(layers, kv_heads, head_dim, window_tokens=window, window_layers=window_layers)


def _dtype(name: str) -> str:
    from kvtier.planning.kv_shape import find_dtype

    try:
        return find_dtype(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dtype") from error


def _list_models(as_json: bool) -> None:
    from kvtier.planning.models import MODELS

    if as_json:
        rows = (
            {"model": name, "bytes_per_token": shape.bytes_per_token, **asdict(shape)}
            for name, shape in MODELS.items()
        )
        print_json({"models": list(rows)})
        return
    console().print(
        table(
            ("model", "attention", "dtype", "bytes a token"),
            (
                (name, shape.attention, shape.dtype, f"{shape.bytes_per_token:,}")
                for name, shape in MODELS.items()
            ),
            left=3,
        )
    )


def _draw(name: str, shape: KvShape, load: Load, made: Plan) -> None:
    needed, stored = human_bytes(made.context_bytes), human_bytes(made.stored_context_bytes)
    rows = [
        (f"a token, {shape.attention}, {shape.dtype}", f"{made.bytes_per_token:,} B"),
        (f"a block of {load.block_tokens:,} tokens", human_bytes(made.block_bytes)),
        (f"a context of {load.context_tokens:,} tokens, in the engine", needed),
        ("its full blocks in a tier", stored),
        (f"{load.batch:,} contexts, in the engine", human_bytes(made.batch_bytes)),
        ("tiers.host.capacity", made.host_capacity),
        ("tiers.disk.capacity", made.disk_capacity),
    ]
    drawn = console()
    drawn.print(table((name, "size"), rows))
    for tier, reason in zip(("HOST", "DISK"), made.reasons, strict=True):
        drawn.print(f"{tier}: {reason}.")
    drawn.print(
        f"That is for {load.sessions:,} live sessions (--sessions), of which {load.reuse:.0%} come "
        f"back soon (--reuse); {load.shared:.0%} of a context is common to all (--shared)."
    )

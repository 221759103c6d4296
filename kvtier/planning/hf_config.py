"""KV caches of models that come with a `config.json` for Transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvtier.errors import ConfigError
from kvtier.planning.kv_shape import KvShape, find_dtype, heads, latent

#: Every n-th layer of these reaches all tokens, where the file does not list its layers.
_FULL_EVERY: Final = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
_FULL: Final = "full_attention"
_WINDOWED: Final = ("sliding_attention", "chunked_attention")


def read_hf_config(path: Path) -> KvShape:
    """Of a `config.json`, or of the directory that has one.

    Raises ConfigError, naming the field, for what does not tell.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: not a JSON object")
    text = document.get("text_config")
    try:
        return _shape({**document, **text} if isinstance(text, dict) else document)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _shape(config: Mapping[str, Any]) -> KvShape:
    layers = _count(config, "num_hidden_layers", "n_layer", "num_layers")
    dtype = _dtype(config)
    if config.get("kv_lora_rank"):
        return latent(
            layers, _count(config, "kv_lora_rank") + _count(config, "qk_rope_head_dim"), dtype
        )
    query_heads = _count(config, "num_attention_heads", "n_head")
    head_dim = config.get("head_dim") or _count(config, "hidden_size", "n_embd") // query_heads
    kv_heads = _kv_heads(config, query_heads)
    window = config.get("sliding_window") or config.get("attention_chunk_size") or 0
    kept, windowed = _kinds(config, layers, bool(window))
    shape = heads(
        kept,
        kv_heads,
        head_dim,
        query_heads=query_heads,
        window_tokens=window,
        window_layers=windowed,
        dtype=dtype,
    )
    if not shape.groups:
        raise ValueError("layer_types has no attention that keeps keys and values")
    return shape


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is not a whole number of at least 1")
        return value
    raise ValueError(f"{names[0]} is missing")


def _dtype(config: Mapping[str, Any]) -> str:
    return find_dtype(str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"))


def _kv_heads(config: Mapping[str, Any], query_heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    if config.get("num_key_value_heads") is not None:
        return _count(config, "num_key_value_heads")
    return _count(config, "num_kv_heads") if config.get("num_kv_heads") else query_heads


def _kinds(config: Mapping[str, Any], layers: int, has_window: bool) -> tuple[int, int]:
    """How many layers keep keys and values of their own, and how many of them in a window."""
    own = layers - int(config.get("num_kv_shared_layers") or 0)
    if listed := config.get("layer_types"):
        kinds = list(listed)[:own]
        windowed = sum(kind in _WINDOWED for kind in kinds) if has_window else 0
        others = sum(kind in (_FULL, *_WINDOWED) for kind in kinds)
        return others, windowed
    if not has_window or config.get("use_sliding_window") is False:
        return own, 0
    every = config.get("sliding_window_pattern") or _FULL_EVERY.get(config.get("model_type", ""))
    if every:
        return own, own - own // every
    if config.get("use_sliding_window"):  # Qwen: the layers from this one on
        return own, max(0, own - int(config.get("max_window_layers", 0)))
    return own, own

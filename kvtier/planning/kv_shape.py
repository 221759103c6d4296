"""What a token leaves in the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Bytes of one number.
DTYPES: Final = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "int8": 1,
}
_OTHER_NAMES: Final = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
}


def find_dtype(name: str) -> str:
    """Its name in `DTYPES`; else a ValueError."""
    known = _OTHER_NAMES.get(name.lower(), name.lower()).removeprefix("torch.")
    if known not in DTYPES:
        raise ValueError(f"no dtype {name!r}; write one of {', '.join(DTYPES)}")
    return known


@dataclass(frozen=True)
class Layers:
    """Layers of one kind: how many numbers each keeps of a token, and for how many tokens.

    `window_tokens` is 0 where attention reaches all.
    """

    layers: int
    numbers_per_token: int
    window_tokens: int = 0


@dataclass(frozen=True)
class KvShape:
    """A model's KV cache."""

    attention: str
    groups: tuple[Layers, ...]
    dtype: str = "bfloat16"

    @property
    def bytes_per_token(self) -> int:
        """In all layers, as long as windows reach it."""
        return DTYPES[self.dtype] * sum(
            each.layers * each.numbers_per_token for each in self.groups
        )

    def context_bytes(self, tokens: int) -> int:
        """What a context needs: of windows no more than they reach."""
        return DTYPES[self.dtype] * sum(
            each.layers * each.numbers_per_token * min(tokens, each.window_tokens or tokens)
            for each in self.groups
        )


def heads(
    layers: int,
    kv_heads: int,
    head_dim: int,
    *,
    query_heads: int = 0,
    window_tokens: int = 0,
    window_layers: int | None = None,
    dtype: str = "bfloat16",
) -> KvShape:
    """Keys and values of each KV head: multi-head attention (Vaswani et al., 2017), multi-query
    (Shazeer, 2019) with one KV head, grouped-query (Ainslie et al., 2023) between them.

    Of sliding-window attention (Beltagy et al., 2020) have `window_layers`, else all if there is a
    window.
    """
    numbers = 2 * kv_heads * head_dim
    kind = "MQA" if kv_heads == 1 else "MHA" if kv_heads == query_heads else "GQA"
    windowed = (layers if window_layers is None else window_layers) if window_tokens else 0
    parts = (Layers(layers - windowed, numbers), Layers(windowed, numbers, window_tokens))
    return KvShape(
        kind if not windowed else f"{kind}, sliding window",
        tuple(each for each in parts if each.layers),
        dtype,
    )


def latent(layers: int, latent_dim: int, dtype: str = "bfloat16") -> KvShape:
    """Multi-head latent attention (DeepSeek-V2, 2024): per layer one vector for keys and values,
    with that of positions (`kv_lora_rank` + `qk_rope_head_dim`)."""
    return KvShape("MLA", (Layers(layers, latent_dim),), dtype)

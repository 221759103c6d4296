"""Well-known models, from their published configurations."""

from __future__ import annotations

import difflib
import re
from typing import Final

from kvtier.errors import ConfigError
from kvtier.planning.kv_shape import KvShape, heads, latent

_DEEPSEEK_LATENT: Final = 512 + 64

MODELS: Final[dict[str, KvShape]] = {
    "gpt2": heads(12, 12, 64, query_heads=12, dtype="float16"),
    "gpt2-xl": heads(48, 25, 64, query_heads=25, dtype="float16"),
    "opt-6.7b": heads(32, 32, 128, query_heads=32, dtype="float16"),
    "falcon-7b": heads(32, 1, 64),
    "starcoder": heads(40, 1, 128),
    "llama-2-7b": heads(32, 32, 128, query_heads=32, dtype="float16"),
    "llama-2-13b": heads(40, 40, 128, query_heads=40, dtype="float16"),
    "llama-2-70b": heads(80, 8, 128, dtype="float16"),
    "llama-3-8b": heads(32, 8, 128),
    "llama-3-70b": heads(80, 8, 128),
    "llama-3.1-8b": heads(32, 8, 128),
    "llama-3.1-70b": heads(80, 8, 128),
    "llama-3.1-405b": heads(126, 8, 128),
    "llama-3.2-1b": heads(16, 8, 64),
    "llama-3.2-3b": heads(28, 8, 128),
    "llama-3.3-70b": heads(80, 8, 128),
    "mistral-7b": heads(32, 8, 128),
    "mistral-7b-v0.1": heads(32, 8, 128, window_tokens=4096),
    "mistral-nemo-12b": heads(40, 8, 128),
    "mistral-small-24b": heads(40, 8, 128),
    "mistral-large-123b": heads(88, 8, 128),
    "mixtral-8x7b": heads(32, 8, 128),
    "mixtral-8x22b": heads(56, 8, 128),
    "qwen2.5-0.5b": heads(24, 2, 64),
    "qwen2.5-1.5b": heads(28, 2, 128),
    "qwen2.5-3b": heads(36, 2, 128),
    "qwen2.5-7b": heads(28, 4, 128),
    "qwen2.5-14b": heads(48, 8, 128),
    "qwen2.5-32b": heads(64, 8, 128),
    "qwen2.5-72b": heads(80, 8, 128),
    "qwen3-0.6b": heads(28, 8, 128),
    "qwen3-1.7b": heads(28, 8, 128),
    "qwen3-4b": heads(36, 8, 128),
    "qwen3-8b": heads(36, 8, 128),
    "qwen3-14b": heads(40, 8, 128),
    "qwen3-32b": heads(64, 8, 128),
    "qwen3-30b-a3b": heads(48, 4, 128),
    "qwen3-235b-a22b": heads(94, 4, 128),
    "gemma-2-2b": heads(26, 4, 256, window_tokens=4096, window_layers=13),
    "gemma-2-9b": heads(42, 8, 256, window_tokens=4096, window_layers=21),
    "gemma-2-27b": heads(46, 16, 128, window_tokens=4096, window_layers=23),
    "gemma-3-1b": heads(26, 1, 256, window_tokens=512, window_layers=22),
    "gemma-3-4b": heads(34, 4, 256, window_tokens=1024, window_layers=29),
    "gemma-3-12b": heads(48, 8, 256, window_tokens=1024, window_layers=40),
    "gemma-3-27b": heads(62, 16, 128, window_tokens=1024, window_layers=52),
    "gpt-oss-20b": heads(24, 8, 64, window_tokens=128, window_layers=12),
    "gpt-oss-120b": heads(36, 8, 64, window_tokens=128, window_layers=18),
    "phi-4": heads(40, 10, 128),
    "yi-34b": heads(60, 8, 128),
    "command-r-35b": heads(40, 64, 128, query_heads=64, dtype="float16"),
    "command-r-plus-104b": heads(64, 8, 128, dtype="float16"),
    "glm-4-9b": heads(40, 2, 128),
    "glm-4.5": heads(92, 8, 128),
    "glm-4.5-air": heads(46, 8, 128),
    "deepseek-v2": latent(60, _DEEPSEEK_LATENT),
    "deepseek-v2-lite": latent(27, _DEEPSEEK_LATENT),
    "deepseek-v3": latent(61, _DEEPSEEK_LATENT),
    "deepseek-r1": latent(61, _DEEPSEEK_LATENT),
    "kimi-k2": latent(61, _DEEPSEEK_LATENT),
}
#: Parts of names that say nothing about the KV cache.
_ASIDE: Final = re.compile(r"^.*/|^meta-|-(instruct|chat|it|hf|base|pt)(?=-|$)")


def find_model(name: str) -> KvShape:
    """By the names above, in upper or lower case, with organisation or `-instruct` too.

    Raises ConfigError, with similar names, if there is none.
    """
    plain = name.lower().replace("_", "-")
    while (shorter := _ASIDE.sub("", plain)) != plain:
        plain = shorter
    if plain in MODELS:
        return MODELS[plain]
    similar = difflib.get_close_matches(plain, MODELS, n=4, cutoff=0.5)
    raise ConfigError(
        f"--model {name}: not known"
        + (f"; similar: {', '.join(similar)}" if similar else "")
        + ". Give the path of its config.json, or --layers with --kv-heads and --head-dim"
    )

"""Makes a small Gemma 3 with random weights: sliding windows of 128 tokens, every sixth layer full.

python make_gemma.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

WINDOW_TOKENS = 128


def make_gemma(directory: Path) -> None:
    torch.manual_seed(11)
    config = Gemma3TextConfig(
        vocab_size=257,
        hidden_size=320,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=WINDOW_TOKENS,
        max_position_embeddings=8192,
        initializer_range=0.1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=256,
    )
    Gemma3ForCausalLM(config).save_pretrained(directory)


if __name__ == "__main__":
    make_gemma(Path(sys.argv[1]))

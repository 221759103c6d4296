"""Makes a small DeepSeek-V2 with random weights: one latent vector for all heads (MLA), no experts.

python make_deepseek.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

#: Widths of the latent vector that vLLM's kernels for CPUs are made for.
LAYERS, LATENT, ROTARY = 4, 512, 64


def make_deepseek(directory: Path) -> None:
    torch.manual_seed(13)
    config = DeepseekV2Config(
        vocab_size=257,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=LATENT,
        q_lora_rank=None,
        qk_rope_head_dim=ROTARY,
        qk_nope_head_dim=64,
        v_head_dim=64,
        n_routed_experts=2,
        n_shared_experts=1,
        num_experts_per_tok=1,
        moe_intermediate_size=64,
        max_position_embeddings=8192,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=256,
    )
    DeepseekV2ForCausalLM(config).save_pretrained(directory)


if __name__ == "__main__":
    make_deepseek(Path(sys.argv[1]))

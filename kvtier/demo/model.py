"""The model that the workers run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from kvtier.demo.byte_tokenizer import ByteTokenizer
from kvtier.demo.conversation import Tokenizer

_SEED = 20250101


def make_model(directory: Path) -> None:
    """Makes a Llama of 64 M parameters, 20 KiB of KV a token, and saves it.

    Its weights are random, wide enough that what it says depends on all that it has read.
    """
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=ByteTokenizer.vocabulary_size,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=131072,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def load_model(name: str) -> PreTrainedModel:
    """A model by name or path, in float32: parts of a prompt then add up to the whole."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return model.eval()


def load_tokenizer(name: str) -> Tokenizer:
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name)
    return tokenizer

"""Makes a small Llama with random weights and a tokenizer of one token per byte.

    python make_model.py DIRECTORY

It says nothing sensible, but computes as a real one does: 133 M parameters, 24 KiB of KV a token.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
#: The last token; it ends an answer, which random weights hardly ever do.
END = 256


def make_model(directory: Path, seed: int = 20250101) -> None:
    """Weights are wide enough that what the model says depends on all that it has read."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=END + 1,
        hidden_size=768,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=131072,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=END,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    save_tokenizer(directory)


def save_tokenizer(directory: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    make: Any = PreTrainedTokenizerFast
    fast = make(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = _CHAT
    fast.save_pretrained(directory)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))

"""A conversation whose time to the first token stays flat, though it grows with every turn.

    python chat.py [--model NAME-OR-PATH] [--turns 10] [--plot chat.png]

Each turn is answered twice, by a model that keeps nothing between turns: once with the prefix that
kvtier has of it, once from its first token on. Without --model, a small Llama with random weights
answers, which says nothing sensible but computes as a real one does. Starts an agent of its own
unless KVTIER_ADDRESS names one. Needs `pip install 'kvtier[transformers,plot]'`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvtier import Client
from kvtier.integrations.transformers import PrefixCache
from kvtier.testing import AgentProcess

ANSWER_TOKENS = 24
QUESTION = "In the year {0} the river rose by {1} cm, and the mill stood still for {2} days. " * 6
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "max_position_embeddings": 131072}


def small_llama() -> Any:
    """One token for each byte, 16 KiB of KV a token."""
    torch.manual_seed(1)
    heads = {
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    }
    # Wide weights, so that what it says depends on all that it has read.
    config = LlamaConfig(vocab_size=256, initializer_range=0.06, eos_token_id=None, **SIZES | heads)
    return LlamaForCausalLM(config).eval()


def generate(model: Any, ids: torch.Tensor, cache: DynamicCache, tokens: int) -> torch.Tensor:
    """`ids` and so many tokens more."""
    output: torch.Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=tokens,
        do_sample=False,
    )
    return output


def converse(client: Client, model: Any, encode: Any, turns: int) -> list[tuple[int, float, float]]:
    """Tokens, seconds with kvtier and seconds without, turn by turn."""
    prefixes = PrefixCache(client, model, name="chat", block_tokens=32)
    ids, rows = torch.empty((1, 0), dtype=torch.long), []
    generate(model, encode("Good day."), DynamicCache(config=model.config), 1)  # warms up
    for turn in range(turns):
        question = encode(QUESTION.format(1900 + 7 * turn, 31 + turn, 3 + turn))
        ids = torch.cat((ids, question), 1)
        started = time.perf_counter()
        cache = prefixes.restore(ids)
        output = generate(model, ids, cache, 1)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        plain = generate(model, ids, DynamicCache(config=model.config), 1)
        computed_seconds = time.perf_counter() - started
        if not torch.equal(output, plain):
            raise SystemExit(f"turn {turn + 1}: another token than without kvtier")
        rows.append((ids.shape[1], seconds, computed_seconds))
        print(
            f"turn {turn + 1:2}: {ids.shape[1]:5} tokens, {cache.restored_tokens:5} restored; "
            f"first token after {seconds:.2f} s, without kvtier {computed_seconds:.2f} s"
        )
        ids = generate(model, output, cache, ANSWER_TOKENS - 1)
        cache.save(ids)
    return rows


def plot(rows: list[tuple[int, float, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    tokens, with_kvtier, without = zip(*rows, strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot(tokens, without, "-o", label="without kvtier")
    panel.plot(tokens, with_kvtier, "-o", label="with kvtier")
    panel.set(xlabel="tokens of the conversation", ylabel="seconds to the first token")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(file, dpi=150)
    print(f"{file}: the same as a picture")


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat whose first token comes equally soon.")
    parser.add_argument("--model", help="a Hugging Face model; default: a small one")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--plot", type=Path, help="a file for a picture, .png or .svg")
    options = parser.parse_args()
    if options.model:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()

        def encode(text: str) -> torch.Tensor:
            return torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    else:
        model = small_llama()

        def encode(text: str) -> torch.Tensor:
            return torch.tensor([list(text.encode())])

    with ExitStack() as stack:
        address = os.environ.get("KVTIER_ADDRESS")
        if address is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-")))
            address = stack.enter_context(AgentProcess(directory)).address
        client = stack.enter_context(Client(address, worker="chat", timeout_seconds=5.0))
        rows = converse(client, model, encode, options.turns)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()

"""One inference worker: reads a Task from stdin, writes what it does and its Outcome to stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from kvtier.client.client import Client
from kvtier.demo.byte_tokenizer import ByteTokenizer
from kvtier.demo.conversation import Tokenizer, conversation
from kvtier.demo.exchange import Outcome, Task
from kvtier.demo.model import load_model, load_tokenizer, make_model
from kvtier.integrations.transformers import PrefixCache

Tell = Callable[[str], None]


class FirstToken(BaseStreamer):
    """When the first new token came: `generate` puts the prompt, then token after token."""

    def __init__(self) -> None:
        self._puts = 0
        self.time = 0.0

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.time = time.perf_counter()

    def end(self) -> None:
        pass


def work(task: Task, tell: Tell) -> Outcome:
    """Answers with kvtier, then without it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, tokenizer = _open(task, tell)
    device = task.device or "cpu"
    model.to(torch.device(device))  # type: ignore[arg-type]
    ids = torch.tensor([conversation(tokenizer, task.prompt_tokens, task.answer)], device=device)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + task.new_tokens > limit:
        raise ValueError(f"{ids.shape[1]} tokens are too many for a model of {limit} positions")
    with Client(task.address, worker=task.worker, device=task.device or None) as client:
        prefixes = PrefixCache(client, model, name="demo", block_tokens=task.block_tokens)
        tell(f"warming up with {ids.shape[1]:,} tokens, untimed")
        generate(model, ids, 2, DynamicCache(config=model.config))
        tell(f"reading {ids.shape[1]:,} tokens with kvtier")
        started = time.perf_counter()
        restored = prefixes.restore(ids)
        output, first = generate(model, ids, task.new_tokens, restored)
        cached_seconds = first - started
        saved = restored.save(output)
    tell(f"reading {ids.shape[1]:,} tokens without kvtier")
    started = time.perf_counter()
    reference, first = generate(model, ids, task.new_tokens, DynamicCache(config=model.config))
    return Outcome(
        prompt_tokens=ids.shape[1],
        restored_tokens=restored.restored_tokens,
        cold_seconds=first - started,
        cached_seconds=cached_seconds,
        loaded_bytes=restored.restored_bytes,
        load_seconds=restored.restored_seconds,
        stored_bytes=saved.size_bytes,
        answer=tuple(output[0, ids.shape[1] :].tolist()),
        reference=tuple(reference[0, ids.shape[1] :].tolist()),
    )


def generate(
    model: PreTrainedModel, ids: torch.Tensor, new_tokens: int, cache: DynamicCache
) -> tuple[torch.Tensor, float]:
    """Greedily: all tokens, [1, tokens], and the time of the first new one."""
    first = FirstToken()
    generate_tokens: Any = model.generate
    output = generate_tokens(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=first,
    )
    return output, first.time


def _open(task: Task, tell: Tell) -> tuple[PreTrainedModel, Tokenizer]:
    if task.is_made and not (Path(task.model) / "config.json").exists():
        tell("making a small Llama model from a fixed seed")
        make_model(Path(task.model))
    tell("loading the model")
    tokenizer = ByteTokenizer() if task.is_made else load_tokenizer(task.model)
    return load_model(task.model), tokenizer


def main() -> None:
    task: dict[str, Any] = json.load(sys.stdin)
    reports, sys.stdout = sys.stdout, sys.stderr  # libraries print, too

    def report(kind: str, value: object) -> None:
        reports.write(json.dumps({kind: value}) + "\n")
        reports.flush()

    task["answer"] = tuple(task["answer"])
    outcome = work(Task(**task), lambda doing: report("doing", doing))
    report("outcome", asdict(outcome))


if __name__ == "__main__":
    main()

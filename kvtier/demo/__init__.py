"""`kvtier demo`: workers, one after the other, share the KV of a text, on one node or on two."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["run_demo"]


def run_demo(
    model: str | None = None,
    tokens: int = 4096,
    nodes: int = 1,
    url: str | None = None,
    device: str = "",
    *,
    as_json: bool = False,
) -> int:
    """Runs it and prints what happens; the exit status.

    `model` is a Hugging Face causal language model, by name or path; without it, a small one is
    made from a seed. The prompt has `tokens` tokens. Two `nodes` share the server at `url`, or one
    that the demo starts and stops. One node may have a GPU tier on a `device`. With `as_json` what
    each worker did is printed at the end. Raises ConfigError for a wrong `url`.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        sys.stderr.write(
            "kvtier demo needs PyTorch and Transformers: pip install 'kvtier[transformers]'\n"
        )
        return 1
    from kvtier.demo.one_node import OneNode
    from kvtier.demo.story import tell
    from kvtier.demo.two_nodes import TwoNodes

    tale = TwoNodes(url) if nodes == 2 else OneNode(device)
    return tell(tale, model, tokens, as_json=as_json)

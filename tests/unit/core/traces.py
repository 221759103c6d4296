"""Blocks in the order in which the shared traces ask for them, as small numbers."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

TOKENS = 512
_AGENTIC_TOKENS = 64


def _lines(name: str, most: int | None = None) -> Iterator[dict[str, Any]]:
    folder = os.environ.get("KVTIER_TRACES")
    if not folder:
        pytest.skip("KVTIER_TRACES, the folder of the traces, is not set")
    with gzip.open(Path(folder) / name) as file:
        yield from map(json.loads, islice(file, most))


def conversation() -> list[int]:
    """Full blocks only."""
    return [
        block
        for request in _lines("mooncake_conversation.jsonl.gz")
        for block in request["hash_ids"][: request["input_length"] // TOKENS]
    ]


def agentic(requests: int) -> list[int]:
    """Of so many requests; eight blocks of 64 tokens make one."""
    numbers: dict[tuple[int, ...], int] = {}
    blocks = []
    together = TOKENS // _AGENTIC_TOKENS
    for request in _lines("agentic_sessions.jsonl.gz", requests):
        ids = [
            each for start, count in request["hash_ranges"] for each in range(start, start + count)
        ]
        ids = ids[: request["input_length"] // _AGENTIC_TOKENS]
        for start in range(0, len(ids) - together + 1, together):
            key = tuple(ids[start : start + together])
            blocks.append(numbers.setdefault(key, len(numbers)))
    return blocks

"""Small traces in each format."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kvtier.sim.trace import Trace, TraceBuilder

Lines = Sequence[Mapping[str, object] | str]
RECORDING: Mapping[str, object] = {"kvtier_recording": 1}


def write(path: Path, lines: Iterable[Mapping[str, object] | str]) -> Path:
    """Packed if the name says so."""
    text = "".join(
        f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines
    ).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def mooncake(
    timestamp: float, tokens: int, ids: Sequence[int], **others: object
) -> dict[str, object]:
    return {"timestamp": timestamp, "input_length": tokens, "hash_ids": list(ids), **others}


def recorded(timestamp: float, ids: Sequence[int], **others: object) -> dict[str, object]:
    line = {
        "timestamp": timestamp,
        "namespace": "t/n@00",
        "block_tokens": 16,
        "block_bytes": 4096,
        "group": 0,
        "shard": 0,
        "position": 0,
        "hash_ids": list(ids),
    }
    return {**line, **others}


def trace_of(chains: Iterable[Sequence[int]], block_tokens: int = 1) -> Trace:
    """A request a second for each chain of ids."""
    builder = TraceBuilder("made")
    for second, ids in enumerate(chains):
        builder.add(float(second), len(ids) * block_tokens, block_tokens, ids)
    return builder.build()


def random_chains(seed: int, requests: int, depth: int, branches: int) -> list[list[int]]:
    """Paths in a tree, in which ids say where a block is."""
    rng, chains = random.Random(seed), []
    for _ in range(requests):
        chain, place = [], 1
        for _ in range(rng.randint(1, depth)):
            place = place * (branches + 1) + rng.randrange(branches)
            chain.append(place)
        chains.append(chain)
    return chains


def chains_of(trace: Trace) -> list[list[int]]:
    """The numbers of each request's full blocks."""
    return [[number for run in request.runs for number in run] for request in trace]

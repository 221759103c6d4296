"""The KV groups of a model as the scheduler sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    RSWASpec,
    SinkFullAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

#: Kinds whose blocks are more, or less, than the keys and values of their tokens.
_OTHER_KINDS = (ChunkedLocalAttentionSpec, RSWASpec, SinkFullAttentionSpec)


@dataclass(frozen=True)
class Group:
    """Layers that share a block table: number `index` at vLLM, and `number` in the namespace.

    `window_tokens` is 0 where attention reaches all tokens. A block has `hashes_per_block` of
    vLLM's hashes, of which the last one names it.
    """

    index: int
    number: int
    block_tokens: int
    hashes_per_block: int
    window_tokens: int

    def first_needed(self, end: int) -> int:
        """The first block that attention after `end` blocks reaches."""
        if not self.window_tokens:
            return 0
        return max(0, end * self.block_tokens - (self.window_tokens - 1)) // self.block_tokens

    def hashes(self, block_hashes: Sequence[bytes], first: int, stop: int) -> list[bytes]:
        """The names of blocks `first` to `stop`, as far as vLLM has hashed them."""
        step = self.hashes_per_block
        return list(block_hashes[(first + 1) * step - 1 : stop * step : step])

    def parent(self, block_hashes: Sequence[bytes], first: int) -> bytes:
        return block_hashes[first * self.hashes_per_block - 1] if first else b""


def groups_of(config: KVCacheConfig, hash_tokens: int) -> tuple[Group, ...]:
    """The groups whose blocks are kept. Raises ValueError for a model with other state."""
    groups = []
    for number, index in enumerate(config.prefix_cacheable_group_ids):
        group = config.kv_cache_groups[index]
        spec = _representative(group.kv_cache_spec)
        known = isinstance(spec, FullAttentionSpec | SlidingWindowSpec)
        if not known or isinstance(spec, _OTHER_KINDS):
            raise ValueError(f"the state of its layers is a {type(spec).__name__}")
        if group.is_eagle_group:
            raise ValueError("it is speculated with EAGLE layers, whose last block is volatile")
        if spec.block_size % hash_tokens:
            raise ValueError(f"blocks of {spec.block_size} tokens have no hash of their own")
        window = spec.sliding_window if isinstance(spec, SlidingWindowSpec) else 0
        groups.append(Group(index, number, spec.block_size, spec.block_size // hash_tokens, window))
    if len(groups) != len(config.kv_cache_groups):
        raise ValueError("some of its layers keep a state that is not addressed by prefix")
    return tuple(groups)


def aligned_tokens(groups: Sequence[Group]) -> int:
    """A prefix ends at a multiple of these."""
    return math.lcm(*(group.block_tokens for group in groups))


def longest_end(
    windows: Sequence[Group], step: int, first: int, end: int, present: Callable[[Group, int], bool]
) -> int:
    """The most tokens, from `first` up to `end` in steps, after which all window groups can go on.

    `present` tells whether a group's block is cached; what lies before `first` is.
    """
    for tokens in range(end, first, -step):
        if all(
            present(group, block)
            for group in windows
            for block in range(
                max(group.first_needed(tokens // group.block_tokens), first // group.block_tokens),
                tokens // group.block_tokens,
            )
        ):
            return tokens
    return first


def _representative(spec: Any) -> Any:
    """The spec of the group's layers; the worker's configuration may wrap one per layer."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return next(iter(spec.kv_cache_specs.values()))
    return spec

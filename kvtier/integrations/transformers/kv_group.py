"""Layers of a model whose KV is kept alike, and how it is laid out in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvtier.client.device import copy
from kvtier.memory import ByteArray

#: The bytes of a block, dimension by dimension.
LAYOUT = "layer,key|value,kv_head,token,head_dim"

#: Layers whose state is exactly their keys and values.
_LAYER_TYPES = (DynamicLayer, DynamicSlidingWindowLayer)

#: Which blocks of a sequence there are, one entry per block.
Presence = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class KvGroup:
    """Layers that attend to equally many tokens (`window_tokens`, 0 for all) with equal heads."""

    layers: tuple[int, ...]
    devices: tuple[torch.device, ...]
    window_tokens: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_tokens: int

    @property
    def block_bytes(self) -> int:
        values = len(self.layers) * 2 * self.kv_heads * self.block_tokens * self.head_dim
        return values * self.dtype.itemsize

    @property
    def description(self) -> str:
        kind = f"window of {self.window_tokens}" if self.window_tokens else "full attention"
        layers = ",".join(map(str, self.layers))
        return f"{kind}, {self.kv_heads} heads of {self.head_dim}, layers {layers}"

    def blocks(self, tokens: int) -> int:
        """In which so many tokens lie."""
        return -(-tokens // self.block_tokens)

    def first_needed(self, tokens: int) -> int:
        """The first token that attention after so many tokens reaches."""
        return max(0, tokens - (self.window_tokens - 1)) if self.window_tokens else 0

    def length(self, cache: DynamicCache, rows: int) -> int:
        """The length of a caller's cache, as these layers know it.

        Raises ValueError if the cache is not one of this model's, for so many sequences.
        """
        for index in self.layers:
            layer: Any = cache.layers[index] if index < len(cache.layers) else None
            if layer is None or not layer.is_initialized:
                return 0
            if type(layer) not in _LAYER_TYPES:
                raise ValueError(
                    f"cache keeps a {type(layer).__name__} in layer {index}; it must be a "
                    "DynamicCache"
                )
            states = layer.keys
            shape = (states.shape[0], states.shape[1], states.shape[-1])
            if shape != (rows, self.kv_heads, self.head_dim) or states.dtype != self.dtype:
                raise ValueError(
                    f"cache has {states.dtype} of {tuple(states.shape)} in layer {index}; for "
                    f"these tokens and this model it must be {self.dtype} of [{rows}, "
                    f"{self.kv_heads}, tokens, {self.head_dim}]"
                )
        return int(cache.get_seq_length(self.layers[0]))

    def first_kept(self, cache: DynamicCache, padding: int) -> int:
        """The first block of which a cache still has every token."""
        return self.blocks(max(0, _dropped(cache.layers[self.layers[0]]) - padding))

    def states(self, rows: int, length: int, device: torch.device) -> torch.Tensor:
        """Room for what attention after `length` positions reaches:
        [layers, 2, rows, kv_heads, positions, head_dim], zeros."""
        kept = length - self.first_needed(length)
        shape = (len(self.layers), 2, rows, self.kv_heads, kept, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=device)

    def copy_block(
        self, cell: Any, block: int, room: torch.Tensor, padding: int, length: int
    ) -> None:
        """Copies a block into one row's part of `states`, as far as its tokens lie there.

        On a device it only begins; `Loaded.valid` waits.
        """
        rows = room.view(torch.uint8)
        begin = self.first_needed(length)
        start = padding + block * self.block_tokens
        first, stop = max(start, begin), min(start + self.block_tokens, length)
        if first < stop:
            tokens = cell.reshape(*rows.shape[:3], self.block_tokens, rows.shape[4])
            copy(
                rows[:, :, :, first - begin : stop - begin],
                tokens[:, :, :, first - start : stop - start],
            )

    def fill(self, cache: DynamicCache, states: torch.Tensor, room: int, length: int) -> None:
        """Makes the layers' part of an empty cache whose length is `length` of `states`, which
        were made for `room` positions."""
        begin = self.first_needed(room)
        states = states[..., self.first_needed(length) - begin : length - begin, :]
        for place, (index, device) in enumerate(zip(self.layers, self.devices, strict=True)):
            keys, values = states[place].to(device)
            layer: Any = cache.layers[index]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if self.window_tokens:
                layer.cumulative_length = length

    def write_block(
        self, cache: DynamicCache, block: int, cell: ByteArray, row: int, padding: int
    ) -> None:
        """Copies one block of a row of a cache into `cell`, which has `block_bytes`."""
        parts = []
        for index in self.layers:
            layer: Any = cache.layers[index]
            start = padding + block * self.block_tokens - _dropped(layer)
            for states in (layer.keys, layer.values):
                parts.append(states[row, :, start : start + self.block_tokens].detach().cpu())
        shape = (len(parts), self.kv_heads, self.block_tokens, self.head_dim)
        torch.stack(parts, out=torch.from_numpy(cell).view(self.dtype).view(shape))


def kv_groups(model: PreTrainedModel, block_tokens: int) -> list[KvGroup]:
    """A model's groups, as one forward pass of one token shows them.

    Raises ValueError for layers whose state is not keys and values of single tokens.
    """
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    members: dict[tuple[int, int, int, torch.dtype], list[int]] = {}
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        if layer.keys is not None:  # None: it uses another layer's
            members.setdefault(_kind(index, layer), []).append(index)
    if not members:
        raise ValueError("model keeps no keys and values in a DynamicCache")
    return [
        KvGroup(
            tuple(indexes),
            tuple(layers[index].keys.device for index in indexes),
            *kind,
            block_tokens,
        )
        for kind, indexes in sorted(members.items(), key=lambda item: item[1])
    ]


def _dropped(layer: Any) -> int:
    """Tokens at the beginning of which a layer keeps nothing any more."""
    return int(layer.get_seq_length() - layer.keys.shape[-2])


def _kind(index: int, layer: Any) -> tuple[int, int, int, torch.dtype]:
    if type(layer) not in _LAYER_TYPES:
        raise ValueError(
            f"model: layer {index} keeps a {type(layer).__name__}, not keys and values"
        )
    if layer.keys.shape != layer.values.shape:
        raise ValueError(
            f"model: layer {index} has keys of {tuple(layer.keys.shape)} and values of "
            f"{tuple(layer.values.shape)}; they must be equal"
        )
    window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else 0
    if window == 1:
        raise ValueError(f"model: the sliding window of layer {index} is 1; it must be at least 2")
    return window, layer.keys.shape[1], layer.keys.shape[3], layer.keys.dtype

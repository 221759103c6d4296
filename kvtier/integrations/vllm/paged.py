"""The paged KV cache of one worker, as opaque bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from vllm.v1.kv_cache_interface import KVCacheConfig, UniformTypeKVCacheSpecs, group_kernel_blocks

from kvtier.integrations.vllm.groups import Group
from kvtier.memory import ByteArray


class Region(Protocol):
    """Layers of a group that lie in one allocation at equal distances."""

    #: Bytes that they have in a block.
    size_bytes: int

    def read(self, ids: slice, cells: ByteArray) -> None:
        """Copies blocks into [blocks, size_bytes]; a layer's part of a block after the other."""
        ...

    def write(self, ids: slice, cells: Any) -> None:
        """Copies [blocks, size_bytes] into blocks."""
        ...


@dataclass(frozen=True)
class _Layer:
    """Where a layer's part of block b is: `page_bytes` at `offset` + b * `stride` of a storage."""

    tensor: torch.Tensor
    storage: int
    offset: int
    stride: int
    page_bytes: int


class PagedGroup:
    """The blocks of one KV group. A block is all layers' bytes, layer after layer."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = tuple(regions)
        self.block_bytes = sum(region.size_bytes for region in regions)

    def read(self, ids: Sequence[int], cells: ByteArray) -> None:
        """Copies blocks of the cache into `cells`, [blocks, block_bytes].

        A few copies for each run of consecutive ids; the GIL is free meanwhile.
        """
        for region, blocks, rows in self._pieces(ids, cells):
            region.read(blocks, rows)

    def write(self, ids: Sequence[int], cells: Any) -> None:
        """Copies cells into blocks of the cache, likewise; they may be a tensor on its device."""
        for region, blocks, rows in self._pieces(ids, cells):
            region.write(blocks, rows)

    def _pieces(self, ids: Sequence[int], cells: Any) -> Iterator[tuple[Region, slice, Any]]:
        for first, stop, blocks in _runs(ids):
            start = 0
            for region in self._regions:
                yield region, blocks, cells[first:stop, start : start + region.size_bytes]
                start += region.size_bytes


def paged_groups(
    groups: Sequence[Group], config: KVCacheConfig, caches: Mapping[str, torch.Tensor]
) -> tuple[PagedGroup, ...]:
    """One for each of `groups`; `caches` has a tensor for each layer, as vLLM registers them."""
    return tuple(
        PagedGroup(_regions(_layers(config, group.index, caches), config.num_blocks))
        for group in groups
    )


def _layers(config: KVCacheConfig, index: int, caches: Mapping[str, torch.Tensor]) -> list[_Layer]:
    group = config.kv_cache_groups[index]
    spec: Any = group.kv_cache_spec
    specs = spec.kv_cache_specs if isinstance(spec, UniformTypeKVCacheSpecs) else {}
    layers = []
    for name in group.layer_names:
        cache = group_kernel_blocks(caches[name], config.num_blocks)
        item_bytes = cache.element_size()
        page_bytes = specs.get(name, spec).page_size_bytes
        layers.append(
            _Layer(
                cache,
                cache.untyped_storage().data_ptr(),
                cache.storage_offset() * item_bytes,
                cache.stride(0) * item_bytes,
                page_bytes,
            )
        )
    return layers


def _regions(layers: Sequence[_Layer], blocks: int) -> list[Region]:
    """Neighbours at equal distances make one region, so that a copy serves many layers."""
    regions: list[Region] = []
    first = 0
    while first < len(layers):
        one = layers[first]
        stop, distance = first + 1, 0
        while stop < len(layers) and _alike(one, layers[stop]):
            step = layers[stop].offset - layers[stop - 1].offset
            if distance and step != distance:
                break
            distance = step
            stop += 1
        shape = (stop - first, blocks, one.page_bytes)
        view = torch.empty(0, dtype=torch.uint8, device=one.tensor.device).set_(
            one.tensor.untyped_storage(),
            one.offset,
            shape,
            (max(distance, 0), one.stride, 1),
        )
        if distance < 0:  # never so in vLLM 0.32
            raise ValueError("layers of the KV cache lie in descending order")
        regions.append(_HostRegion(view) if view.device.type == "cpu" else _DeviceRegion(view))
        first = stop
    return regions


def _alike(one: _Layer, other: _Layer) -> bool:
    return (one.storage, one.stride, one.page_bytes) == (
        other.storage,
        other.stride,
        other.page_bytes,
    )


class _HostRegion:
    """In this machine's memory. NumPy copies on the calling thread; torch would wake its own."""

    def __init__(self, view: torch.Tensor) -> None:
        self._pages = view.numpy()
        self.size_bytes = self._pages.shape[0] * self._pages.shape[2]

    def read(self, ids: slice, cells: ByteArray) -> None:
        np.copyto(self._by_layer(cells), self._pages[:, ids])

    def write(self, ids: slice, cells: ByteArray) -> None:
        np.copyto(self._pages[:, ids], self._by_layer(cells))

    def _by_layer(self, cells: ByteArray) -> ByteArray:
        layers, _, page_bytes = self._pages.shape
        return as_strided(
            cells, (layers, len(cells), page_bytes), (page_bytes, cells.strides[0], 1)
        )


class _DeviceRegion:
    """On an accelerator: gathered or scattered there, one copy for each run of cells."""

    def __init__(self, view: torch.Tensor) -> None:
        self._pages = view
        self.size_bytes = view.shape[0] * view.shape[2]

    def read(self, ids: slice, cells: ByteArray) -> None:
        staged = self._pages.index_select(1, self._index(ids)).transpose(0, 1)
        torch.from_numpy(cells).copy_(staged.reshape(len(cells), -1))

    def write(self, ids: slice, cells: Any) -> None:
        layers, _, page_bytes = self._pages.shape
        staged = torch.as_tensor(cells).to(self._pages.device)
        staged = staged.view(len(cells), layers, page_bytes).transpose(0, 1)
        self._pages.index_copy_(1, self._index(ids), staged)

    def _index(self, ids: slice) -> torch.Tensor:
        blocks = range(self._pages.shape[1])[ids]
        return torch.tensor(list(blocks), device=self._pages.device)


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int, slice]]:
    """Consecutive ids, up or down: the first index, one past the last, and the ids as a slice.

    vLLM frees the blocks of a request last one first, so the next one often gets them descending.
    """
    first, count = 0, len(ids)
    while first < count:
        stop, step = first + 1, 1
        if stop < count and abs(ids[stop] - ids[first]) == 1:
            step = ids[stop] - ids[first]
        while stop < count and ids[stop] - ids[stop - 1] == step:
            stop += 1
        last = ids[first] + step * (stop - first)
        yield first, stop, slice(ids[first], last if last >= 0 else None, step)
        first = stop

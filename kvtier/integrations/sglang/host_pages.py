"""Pages of SGLang's host memory pool, as pieces of plain memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from kvtier.memory import ByteArray


class HostPages:
    """The pages of one pool. A page lies in one piece or in several (keys and values, or those of
    each layer), and its bytes are those of its pieces, in the pool's own order.

    Raises ValueError for a pool whose pages cannot be reached like this.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.page_tokens: int = pool.logical_page_size
        _, self.piece_bytes = self._places(torch.arange(self.page_tokens))
        self.page_bytes = sum(self.piece_bytes)
        self._spans = [slice(*each) for each in pairwise((0, *accumulate(self.piece_bytes)))]
        self._types = [ctypes.c_uint8 * size for size in self.piece_bytes]

    def tokens(self, pages: slice) -> slice:
        """The tokens of these pages."""
        return slice(pages.start * self.page_tokens, pages.stop * self.page_tokens)

    def copy_in(self, cells: Sequence[ByteArray | None], host_indices: torch.Tensor) -> None:
        """Fills cells of [page_bytes] from the pages of these tokens; None is left out."""
        for piece, part in self._pairs(cells, host_indices):
            np.copyto(part, piece)

    def copy_out(self, cells: Sequence[ByteArray | None], host_indices: torch.Tensor) -> None:
        """Fills the pages of these tokens from cells of [page_bytes]; None is left out."""
        for piece, part in self._pairs(cells, host_indices):
            np.copyto(piece, part)

    def _pairs(
        self, cells: Sequence[ByteArray | None], host_indices: torch.Tensor
    ) -> Iterator[tuple[ByteArray, ByteArray]]:
        """Each piece of the pool's memory, and the part of a cell that belongs to it."""
        addresses, sizes = self._places(host_indices)
        if sizes != self.piece_bytes * len(cells):
            raise ValueError(f"{len(host_indices)} tokens are not {len(cells)} pages of the pool")
        count = len(self.piece_bytes)
        for index, cell in enumerate(cells):
            if cell is None:
                continue
            page = addresses[index * count : (index + 1) * count]
            for address, kind, span in zip(page, self._types, self._spans, strict=True):
                yield np.ctypeslib.as_array(kind.from_address(address)), cell[span]

    def _places(self, host_indices: torch.Tensor) -> tuple[list[int], list[int]]:
        """Address and size of each piece."""
        places = self._pool.get_page_buffer_meta(host_indices)
        if not places or not places[1]:
            raise ValueError(f"the pages of a {type(self._pool).__name__} lie nowhere in memory")
        return list(places[0]), list(places[1])

"""The prompts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Prompt:
    """The tokens of one row, and the positions before its first one."""

    ids: npt.NDArray[np.integer]
    padding: int = 0

    def tokens(self, length: int) -> int:
        """How many of its tokens lie in the first `length` positions of the batch."""
        return min(len(self.ids), max(0, length - self.padding))


def paddings(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[int, ...]:
    """Positions before the first token of each row. Raises ValueError for other padding."""
    if attention_mask is None:
        return (0,) * len(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be that of "
            f"input_ids, {tuple(input_ids.shape)}"
        )
    mask = attention_mask.cpu().numpy() != 0
    if not mask.any(1).all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
        raise ValueError("attention_mask: rows may be padded on the left only, and none is empty")
    return tuple(int(first) for first in mask.argmax(1))


def prompts(input_ids: torch.Tensor, padded: Sequence[int]) -> list[Prompt]:
    """The rows of `input_ids`, [rows, tokens]. Raises ValueError for another shape."""
    check_ids(input_ids)
    if len(padded) != len(input_ids):
        raise ValueError(f"input_ids has {len(input_ids)} rows; the cache has {len(padded)}")
    rows = input_ids.cpu().numpy()
    return [Prompt(row[first:], first) for row, first in zip(rows, padded, strict=True)]


def check_ids(input_ids: torch.Tensor) -> None:
    """Raises ValueError for what are no token ids of a batch."""
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be [rows, tokens]")

"""What `generate` takes as `past_key_values`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedConfig


@dataclass(frozen=True)
class Saved:
    """Blocks of any group that were not cached before, and their bytes."""

    blocks: int = 0
    size_bytes: int = 0


class KvtierCache(DynamicCache):
    """A DynamicCache that `PrefixCache.restore` has filled with the longest prefix it found.

    `restored_tokens` are the leading positions that it has then (of a batch, those that all rows
    have, padding among them), `restored_bytes` and `restored_seconds` what getting them took. It
    keeps every token of sliding layers too, for `save` to find; `crop(0)` drops what no window
    reaches any more.
    """

    def __init__(
        self, config: PreTrainedConfig, save: Callable[[torch.Tensor, KvtierCache], Saved]
    ) -> None:
        super().__init__(config=config)
        self.activate_past_recording()
        self._save = save
        self.restored_tokens = 0
        self.restored_bytes = 0
        self.restored_seconds = 0.0

    def save(self, output_ids: torch.Tensor) -> Saved:
        """Stores what is not cached yet of the full blocks, and does not change the cache.

        `output_ids`, [rows, tokens], are what `generate` returned: the prompts as they were
        restored, and what follows them. Raises ValueError for a bad argument, and nothing else.
        """
        return self._save(output_ids, self)

"""How far into its prompts a batch can be restored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtier.integrations.transformers.kv_group import KvGroup, Presence
from kvtier.integrations.transformers.prompts import Prompt


class Row:
    """One prompt: the hashes of its full blocks, and which of them there are, group by group."""

    def __init__(self, prompt: Prompt, hashes: Sequence[bytes], groups: Sequence[KvGroup]) -> None:
        self.prompt = prompt
        self.hashes = hashes
        self.present: list[Presence] = [np.zeros(len(hashes), np.bool_) for _ in groups]
        self._groups = groups

    def needed(self, index: int, length: int) -> slice:
        """The blocks of a group that attention after `length` positions of the batch reaches."""
        group = self._groups[index]
        tokens = self.prompt.tokens(length)
        return slice(group.first_needed(tokens) // group.block_tokens, group.blocks(tokens))

    def has(self, length: int) -> bool:
        """Whether a model can go on after `length` positions with what is present."""
        for index, here in enumerate(self.present):
            needed = self.needed(index, length)
            if needed.stop > len(here) or not here[needed].all():
                return False
        return True

    def ends(self) -> list[int]:
        """The positions of the batch at which it begins, and its blocks end."""
        size = self._groups[0].block_tokens
        return [self.prompt.padding + size * blocks for blocks in range(len(self.hashes) + 1)]

    def forget_clipped(self, length: int) -> None:
        """Blocks of which only the end was copied, for `length` positions, are of no use for
        another length."""
        for group, here in zip(self._groups, self.present, strict=True):
            first, clipped = divmod(
                group.first_needed(self.prompt.tokens(length)), group.block_tokens
            )
            if clipped and first < len(here):
                here[first] = False


def longest(rows: Sequence[Row], most: int) -> int:
    """The most positions, up to `most`, after which all rows can go on."""
    ends = {most, *(end for row in rows for end in row.ends())}
    return next(
        (
            end
            for end in sorted(ends, reverse=True)
            if end <= most and all(row.has(end) for row in rows)
        ),
        0,
    )

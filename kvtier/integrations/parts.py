"""Cutting a batch of blocks, so that no lease or reservation is held for long."""

from __future__ import annotations


def parts(count: int, block_bytes: int, part_bytes: int, first: int = 0) -> list[slice]:
    """The blocks from `first` to `count` in parts of about `part_bytes`."""
    step = max(1, part_bytes // block_bytes)
    return [slice(start, min(start + step, count)) for start in range(first, count, step)]

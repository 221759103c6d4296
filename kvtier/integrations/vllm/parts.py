"""Cutting a batch of blocks, so that no lease or reservation is held for long."""

from __future__ import annotations

from kvtier.integrations.vllm.plan import Blocks


def parts(count: int, block_bytes: int, part_bytes: int) -> list[slice]:
    """`count` blocks in parts of about `part_bytes`."""
    step = max(1, part_bytes // block_bytes)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def part_of(blocks: Blocks, part: slice) -> Blocks:
    parent = blocks.hashes[part.start - 1] if part.start else blocks.parent
    return Blocks(
        blocks.group,
        blocks.hashes[part],
        blocks.ids[part],
        parent,
        blocks.position + part.start,
    )

"""A part of the blocks of a load or store."""

from __future__ import annotations

from kvtier.integrations.vllm.plan import Blocks


def part_of(blocks: Blocks, part: slice) -> Blocks:
    parent = blocks.hashes[part.start - 1] if part.start else blocks.parent
    return Blocks(
        blocks.group,
        blocks.hashes[part],
        blocks.ids[part],
        parent,
        blocks.position + part.start,
    )

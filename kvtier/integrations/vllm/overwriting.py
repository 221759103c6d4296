"""Which blocks of the paged cache a step gives to somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvtier.integrations.vllm.groups import Group
from kvtier.integrations.vllm.plan import Load


def overwritten(groups: Sequence[Group], loads: Iterable[Load], output: Any) -> set[int]:
    """Blocks that requests were given in this step to be written, not those that they share."""
    fresh = {block for load in loads for blocks in load.blocks for block in blocks.ids}
    for request in output.scheduled_new_reqs:
        fresh |= _unshared(groups, request.block_ids, request.num_computed_tokens)
    cached = output.scheduled_cached_reqs
    for request_id, ids, computed in zip(
        cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
    ):
        if ids is not None:  # all blocks of a resumed request, else those that are added
            resumed = request_id in cached.resumed_req_ids
            fresh |= _unshared(groups, ids, computed if resumed else 0)
    return fresh


def _unshared(groups: Sequence[Group], ids: Sequence[Sequence[int]], computed: int) -> set[int]:
    return {
        block for group in groups for block in ids[group.index][computed // group.block_tokens :]
    }

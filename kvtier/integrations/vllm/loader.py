"""Copies blocks from the agent into the paged cache, on a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kvtier.client.client import Client
from kvtier.client.namespace import Namespace, Place
from kvtier.core.block import BlockStatus
from kvtier.errors import KvtierError
from kvtier.integrations.vllm.paged import PagedGroup
from kvtier.integrations.vllm.parts import part_of, parts
from kvtier.integrations.vllm.plan import Blocks, Load
from kvtier.integrations.vllm.reconnecting import call

log = logging.getLogger("vllm.kvtier")

#: Leased at a time. Slower tiers go on with the next part while one is copied.
_PART_BYTES, _SLOWER_PART_BYTES = 128 << 20, 32 << 20
_TTL_SECONDS = 2.0
#: What may go wrong without being anybody's mistake.
FAILURES = (KvtierError, OSError, MemoryError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Loaded:
    """What became of a load: paged blocks that were not filled, and the bytes that were copied."""

    request_id: str
    missing: tuple[int, ...]
    size_bytes: int
    seconds: float
    error: str = ""


class Loader:
    """Loads one request after the other, in the calling thread."""

    def __init__(
        self,
        groups: Sequence[PagedGroup],
        shard: int,
        client: Client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._groups = groups
        self._shard = shard
        self._clock = clock

    def load(self, namespace: Namespace, load: Load) -> Loaded:
        """Never raises. Groups of which some blocks are missing are not gone on with: a prefix ends
        at the first one."""
        started = self._clock()
        deadline = started + load.budget_seconds if load.budget_seconds else float("inf")
        part_bytes = _SLOWER_PART_BYTES if load.is_slower else _PART_BYTES
        missing: list[int] = []
        size_bytes, error = 0, ""
        for blocks in load.blocks:
            copied = 0
            try:
                if not missing:
                    copied = call(
                        self._client,
                        self._client.timeout_seconds,
                        partial(self._load, namespace, blocks, part_bytes, deadline),
                    )
            except FAILURES as failure:
                error = str(failure)
            except Exception as failure:
                log.exception("kvtier: a load failed")
                error = repr(failure)
            size_bytes += copied * self._groups[blocks.group].block_bytes
            missing += blocks.ids[copied:]
        seconds = self._clock() - started
        return Loaded(load.request_id, tuple(missing), size_bytes, seconds, error)

    def _load(self, namespace: Namespace, blocks: Blocks, part_bytes: int, deadline: float) -> int:
        """How many leading blocks were copied."""
        group = self._groups[blocks.group]
        cut = parts(len(blocks.hashes), group.block_bytes, part_bytes)
        if len(cut) > 1:  # the parts after the first one are fetched from slower tiers meanwhile
            place = Place(blocks.group, self._shard, blocks.parent, blocks.position)
            namespace.prefetch(blocks.hashes, place=place)
        done = 0
        for part in cut:
            if self._clock() > deadline:  # computing would have been faster
                break
            hold_id = blocks.hold_id if part.stop == len(blocks.hashes) else 0
            piece = part_of(blocks, part)
            place = Place(blocks.group, self._shard, piece.parent, piece.position)
            with namespace.load(
                piece.hashes, place=place, hold_id=hold_id, ttl_seconds=_TTL_SECONDS
            ) as loaded:
                count = loaded.count
                cells = [view for view in loaded.views[:count] if view is not None]
                group.write(piece.ids[:count], cells)
                loaded.valid()  # what was overwritten meanwhile does not count
                statuses = loaded.statuses[:count]
            good = next((i for i, s in enumerate(statuses) if s != BlockStatus.OK), count)
            done += good
            if good < len(piece.hashes):
                break
        return done

"""Copies blocks from the agent into the paged cache."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus, Wait
from kvtier.errors import OverloadedError
from kvtier.integrations.parts import parts
from kvtier.integrations.vllm.mover import Mover
from kvtier.integrations.vllm.parts import part_of
from kvtier.integrations.vllm.plan import Blocks, Load

#: Leased at a time. Slower tiers go on with the next part while one is copied.
_PART_BYTES, _SLOWER_PART_BYTES = 128 << 20, 32 << 20
#: Of slower tiers, judged at a time: whether what is left comes sooner than it is computed.
_JUDGED_BYTES, _JUDGED_BLOCKS = 512 << 20, 1024
_TTL_SECONDS = 2.0


@dataclass(frozen=True)
class Loaded:
    """What became of a load: paged blocks that were not filled, and the bytes that were copied."""

    request_id: str
    missing: tuple[int, ...]
    size_bytes: int
    seconds: float
    error: str = ""


class Loader(Mover):
    """Loads one request after the other, in the calling thread: what comes sooner than it would be
    computed."""

    def load(self, namespace: Namespace, load: Load) -> Loaded:
        """Never raises. Groups of which some blocks are missing are not gone on with: a prefix ends
        at the first one."""
        started = self._clock()
        missing: list[int] = []
        size_bytes, error = 0, ""
        for blocks in load.blocks:
            copied = 0
            if not missing:
                copied, error = self._attempt(
                    partial(self._load, namespace, load, blocks, started), 0
                )
            size_bytes += copied * self._groups[blocks.group].block_bytes
            missing += blocks.ids[copied:]
        seconds = self._clock() - started
        return Loaded(load.request_id, tuple(missing), size_bytes, seconds, error)

    def _load(self, namespace: Namespace, load: Load, blocks: Blocks, started: float) -> int:
        """How many leading blocks were copied."""
        group = self._groups[blocks.group]
        part_bytes = _SLOWER_PART_BYTES if load.is_slower else _PART_BYTES
        cut = parts(len(blocks.hashes), group.block_bytes, part_bytes)
        judged = min(_JUDGED_BYTES // group.block_bytes, _JUDGED_BLOCKS) if load.is_slower else 0
        compute_seconds = self._share(blocks) * load.budget_seconds
        done = 0
        for part, following in zip(cut, [*cut[1:], None], strict=True):
            if self._clock() > started + load.budget_seconds:
                break  # computing would have been faster
            hold_id = blocks.hold_id if part.stop == len(blocks.hashes) else 0
            piece = part_of(blocks, part)
            if load.is_slower and following:  # it is fetched while this one is copied
                both = part_of(blocks, slice(part.start, following.stop))
                with suppress(OverloadedError):
                    namespace.prefetch(both.hashes, place=self._place(both))
            with namespace.load(
                blocks.hashes[part.start : max(part.stop, part.start + judged)],
                place=self._place(piece),
                hold_id=hold_id,
                ttl_seconds=_TTL_SECONDS,
                wait=Wait.BREAK_EVEN,
                compute_seconds_per_block=compute_seconds,
                lease_count=len(piece.hashes),
            ) as loaded:
                count = loaded.count
                for first, stop, cells in loaded.runs():
                    if first < count:  # what lies behind a gap is of no use
                        group.write(piece.ids[first:stop], cells)
                loaded.valid()  # what was overwritten meanwhile does not count
                statuses = loaded.statuses[: len(piece.hashes)]
            good = next((i for i, s in enumerate(statuses) if s != BlockStatus.OK), len(statuses))
            done += good
            if good < len(piece.hashes):
                break
        return done

    def _share(self, blocks: Blocks) -> float:
        """Of the time to compute a load, what one block takes: groups share it by their bytes, and
        the blocks of one evenly."""
        total_bytes = sum(group.block_bytes for group in self._groups)
        return self._groups[blocks.group].block_bytes / total_bytes / len(blocks.hashes)

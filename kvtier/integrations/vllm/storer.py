"""Copies blocks from the paged cache to the agent."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial

from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus
from kvtier.integrations.parts import parts
from kvtier.integrations.vllm.mover import Mover
from kvtier.integrations.vllm.parts import part_of
from kvtier.integrations.vllm.plan import Blocks, Store

#: Reserved and copied at a time. A copy is not interrupted, so this is what a step may wait for.
_PART_BYTES = 32 << 20
_STORED = {int(BlockStatus.OK), int(BlockStatus.PRESENT)}


@dataclass(eq=False)
class StoreJob:
    """A store that waits or goes on. `cancelled` is checked before each copy, under its lock."""

    namespace: Namespace
    store: Store
    cancelled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reads(self, ids: set[int]) -> bool:
        """Whether it reads one of these paged blocks."""
        return any(not ids.isdisjoint(blocks.ids) for blocks in self.store.blocks)

    def cancel(self) -> None:
        """No paged block is read any more when this returns."""
        self.cancelled = True
        with self.lock:
            return


@dataclass(frozen=True)
class Stored:
    """What became of a store."""

    request_id: str
    size_bytes: int
    seconds: float
    is_whole: bool
    error: str = ""


class Storer(Mover):
    """Stores one job after the other, in the calling thread."""

    def store(self, job: StoreJob) -> Stored:
        """Never raises. What follows a block that is not stored is not stored either."""
        started = self._clock()
        size_bytes, is_whole, error = 0, False, ""
        for blocks in job.store.blocks:
            (stored, is_whole), error = self._attempt(partial(self._store, job, blocks), (0, False))
            size_bytes += stored * self._groups[blocks.group].block_bytes
            if not is_whole:
                break
        seconds = self._clock() - started
        return Stored(job.store.request_id, size_bytes, seconds, is_whole, error)

    def _store(self, job: StoreJob, blocks: Blocks) -> tuple[int, bool]:
        """How many blocks were copied, and whether all are cached now."""
        group = self._groups[blocks.group]
        copied = 0
        for part in parts(len(blocks.hashes), group.block_bytes, _PART_BYTES):
            piece = part_of(blocks, part)
            with job.namespace.reserve(piece.hashes, place=self._place(piece)) as reservation:
                wanted = 0
                with job.lock:
                    if job.cancelled:
                        return copied, False
                    for first, stop, cells in reservation.runs():
                        group.read(piece.ids[first:stop], cells)
                        wanted += stop - first
                statuses = reservation.commit()
            copied += wanted
            if not _STORED.issuperset(statuses):
                return copied, False
        return copied, True

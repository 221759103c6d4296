"""Writing blocks of HOST into the cluster."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from kvtier.agent.moving.storage_mover import Kind, StorageMover
from kvtier.agent.moving.writer import Taken, Writer, spawn
from kvtier.agent.tiers.existence import Existence
from kvtier.agent.tiers.tenures import Tenure, Tenures
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.size_class import SizeClass

log = logging.getLogger(__name__)


class ClusterWriter(Writer):
    """Seals and stores what the cluster does not have yet.

    `agreed` is awaited before a namespace's blocks are written; `codec_of` says how they are
    stored, by `tenant/name`.
    """

    tier = Tier.CLUSTER

    def __init__(
        self,
        tenures: Tenures,
        existence: Existence,
        asking: StorageMover[ClusterStorage],
        mover: StorageMover[ClusterStorage],
        *,
        agreed: Callable[[Tenure], Awaitable[None]],
        codec_of: Callable[[str], Codec],
    ) -> None:
        super().__init__()
        self._tenures = tenures
        self._existence = existence
        self._asking = asking
        self._mover = mover
        self._storage = mover.storage
        self._agreed = agreed
        self._codec_of = codec_of
        self.stored_count = 0

    @property
    def is_writable(self) -> bool:
        return self._mover.is_writable and self._asking.is_readable

    def require_writable(self) -> None:
        if not self.is_writable:
            raise OSError(self._mover.reason or self._asking.reason)

    @property
    def written_bytes(self) -> int:
        return self._mover.written_bytes

    def would_take(self, host: SizeClass, keys: BlockKeys, index: int) -> bool:
        return True  # its servers evict as they like

    def has(self, host: SizeClass, row: int) -> bool:
        lane, block_hash = host.residency.describe(row)
        [is_there] = self._existence.known((host.table.namespace_id, lane), [block_hash])
        return is_there is True

    async def sync(self) -> None:
        """A server's answer is all that there is."""

    async def _write(self, host: SizeClass, blocks: list[Taken]) -> None:
        tenure = self._tenures.of_id(host.table.namespace_id)
        try:
            if tenure is None:
                raise OSError("the namespace is gone")
            await self._agreed(tenure)
        except OSError as error:
            log.warning("CLUSTER: blocks are not written: %s", error)
            self._fail(blocks)
            return
        # Those of an earlier generation have been evicted, now that the nodes agree on this one.
        gone = [block for block in blocks if not block.is_current]
        blocks = [block for block in blocks if block.is_current]
        self._end(gone)
        with suppress(OSError):
            while blocks:
                blocks = await self._write_some(tenure, host, blocks)

    async def _write_some(
        self, tenure: Tenure, host: SizeClass, blocks: list[Taken]
    ) -> list[Taken]:
        """The leading ones, at least one, as many as a mover's call has time for: the others.

        After an OSError nobody goes on with those: they have failed, or do when the call ends.
        """
        cells = [cell_of(host.table, block.slot) for block in blocks]
        is_given_up = False
        others: list[Taken] | None = None  # once the call has ended

        def landed(stored: list[bool] | None) -> None:
            nonlocal others
            count = len(blocks) if stored is None else len(stored)
            others = blocks[count:]
            self._landed(tenure, blocks[:count], stored)
            if is_given_up:
                self._fail(others)

        try:
            await self._mover.run(
                self._push,
                tenure,
                blocks,
                cells,
                [host.lifetimes.remaining_seconds(block.stored_at) for block in blocks],
                size_bytes=len(blocks) * host.slot_bytes,
                kind=Kind.WRITE,
                on_end=landed,
            )
        except OSError:
            is_given_up = True
            if others is None:
                self._give_up(blocks)
            else:
                self._fail(others)
            raise
        assert others is not None, "it has ended"
        return others

    def _fail(self, blocks: list[Taken]) -> None:
        self.failed_count += len(blocks)
        self._end(blocks)

    def _push(
        self,
        tenure: Tenure,
        blocks: Sequence[Taken],
        cells: Sequence[ByteArray],
        ttls: Sequence[float | None],
    ) -> list[bool]:
        """Whether each of the leading ones was stored, rather than there already, or too old.

        Begins with no further one after a while: a call of many exchanges on a slow network is
        not to be taken for one without an answer. Called by movers.
        """
        storage, identity = self._storage, tenure.identity
        codec = self._codec_of(tenure.label)
        begin_until = (time.monotonic() + storage.deadline()) / 2
        stored: list[bool] = []
        there = self._exist(tenure, blocks)
        for block, cell, ttl, is_there in zip(blocks, cells, ttls, there, strict=True):
            is_wanted = not is_there and (ttl is None or ttl >= 1)
            if is_wanted:
                if any(stored) and time.monotonic() > begin_until:
                    break
                payload = cell[: tenure.block_bytes[block.key.lane.group]]
                storage.blocks.store(identity, block.key, payload, codec, storage.deadline(), ttl)
            stored.append(is_wanted)
        return stored

    def _exist(self, tenure: Tenure, blocks: Sequence[Taken]) -> list[bool]:
        by_lane: defaultdict[Lane, list[int]] = defaultdict(list)
        for index, block in enumerate(blocks):
            by_lane[block.key.lane].append(index)
        there = [False] * len(blocks)
        for lane, indexes in by_lane.items():
            hashes = [blocks[index].key.block_hash for index in indexes]
            answers = self._storage.blocks.exist(
                tenure.identity, lane, hashes, self._storage.deadline()
            )
            for index, answer in zip(indexes, answers, strict=True):
                there[index] = answer is True
        return there

    def _landed(self, tenure: Tenure, blocks: Sequence[Taken], stored: list[bool] | None) -> None:
        unwanted: defaultdict[Lane, list[bytes]] = defaultdict(list)
        for block, is_new in zip(blocks, stored or [False] * len(blocks), strict=True):
            lane, block_hash = block.key.lane, block.key.block_hash
            if not block.is_current:  # evicted on request meanwhile; a failed write may be there
                unwanted[lane].append(block_hash)
            elif stored is None:
                self.failed_count += 1
            else:
                self.stored_count += is_new
                if is_new:
                    self._note_written(block)
                if tenure.is_current:
                    place = (tenure.namespace_id, lane)
                    self._existence.note(place, [block_hash], is_there=True)
        for lane, hashes in unwanted.items():
            spawn(self._erase(tenure, lane, hashes), self._erasing)
        self._end(blocks)

    async def _erase(self, tenure: Tenure, lane: Lane, hashes: list[bytes]) -> None:
        storage = self._storage
        try:
            await self._mover.run(
                lambda: storage.blocks.delete(tenure.identity, lane, hashes, storage.deadline())
            )
        except OSError as error:
            self.unerased_count += len(hashes)
            log.error("CLUSTER: evicted blocks cannot be removed: %s", error.strerror or error)

"""Blocks from a stream of messages, of workers without shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np
import xxhash

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.serving.reading import part_of, window_blocks
from kvtier.agent.serving.storing import Storing
from kvtier.agent.sessions.grants import Grants
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.sessions.stream_sessions import StreamSessions, require_connected
from kvtier.core.block import BlockKeys, BlockStatus
from kvtier.core.block_stream import Arrival, Chunk, arrivals
from kvtier.core.lease import Lease
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of

_NOT_SENT = 0


class Writing:
    """Writes blocks to slots that it reserves some at a time, and commits those."""

    def __init__(
        self,
        grants: Grants,
        storing: Storing,
        mover: Mover,
        sessions: StreamSessions,
        lifecycle: Lifecycle,
    ) -> None:
        self._grants = grants
        self._storing = storing
        self._mover = mover
        self._sessions = sessions
        self._lifecycle = lifecycle

    async def write(
        self,
        session: Session,
        keys: BlockKeys,
        chunks: AsyncIterator[Chunk],
        deadline: float | None,
    ) -> list[int]:
        """A status for each key, 0 if it was not sent.

        Ends before the stream does at a block that finds no room. Blocks that are complete are
        committed whatever ends the stream; what is left of it is given back, once no mover writes
        to it any more.
        """
        with self._sessions.streaming(session) as leaser:
            stream = _Stream(self, leaser, keys, deadline)
            try:
                async for chunk in chunks:
                    self._sessions.renew(session)
                    if not await stream.take(chunk):
                        break
                else:
                    stream.require_complete()
                await stream.commit()
            except InvalidRequestError:
                await stream.commit()
                raise
            finally:
                stream.close()
        return stream.statuses

    async def reserve(
        self, leaser: Session, keys: BlockKeys, deadline: float | None
    ) -> tuple[Lease, list[int]]:
        """Slots for what is not there of these keys, and a status for each."""
        self._lifecycle.require_serving()
        require_connected(leaser)
        patience = None if deadline is None else max(0.0, deadline - self._grants.leases.now())
        granted = await self._storing.reserve(leaser, [keys], patience_seconds=patience)
        return granted.lease, granted.statuses

    def room(self, leaser: Session, keys: BlockKeys) -> int:
        """Slots that the session may still reserve."""
        return self._grants.room(leaser, leaser.namespace.groups[keys.lane.group])

    async def commit(self, leaser: Session, lease: Lease, indexes: list[int]) -> list[BlockStatus]:
        return await self._storing.commit(leaser, lease.lease_id, indexes)

    def renew(self, leaser: Session, lease: Lease) -> None:
        self._grants.renew(leaser, [lease.lease_id], 0.0)

    def copy(self, fills: list[_Fill]) -> asyncio.Task[list[bool]]:
        """Under way, and not ended by a cancellation of the call."""
        return asyncio.get_running_loop().create_task(self._mover.run(_copy_all, fills))

    def release(self, lease: Lease) -> None:
        self._grants.release(lease)


class _Block:
    """One block that is being written: its slot's payload, and the digest of it so far."""

    def __init__(self, cell: ByteArray) -> None:
        self.cell = cell
        self.hash = xxhash.xxh3_128()


class _Fill(NamedTuple):
    """Bytes for a part of a block; the digest with the last of them."""

    block: _Block
    arrival: Arrival


class _Window:
    """Keys from `first` on, with slots for those that are not there yet."""

    def __init__(
        self, first: int, lease: Lease, statuses: list[int], cells: list[ByteArray | None]
    ) -> None:
        self.first = first
        self.stop = first + len(statuses)
        self.lease = lease
        self.statuses = statuses
        self.complete: list[int] = []
        self.fills: list[_Fill] = []
        self.copying: asyncio.Task[list[bool]] | None = None
        self._cells = cells
        self._block: _Block | None = None

    def block(self, arrival: Arrival) -> _Block:
        """The block that a piece belongs to; pieces come in order."""
        cell = self._cells[arrival.key - self.first]
        assert cell is not None
        if arrival.start == 0 or self._block is None:
            self._block = _Block(cell)
        return self._block


class _Stream:
    """What has come of one stream."""

    def __init__(
        self, writing: Writing, leaser: Session, keys: BlockKeys, deadline: float | None
    ) -> None:
        self.statuses = [_NOT_SENT] * len(keys.hashes)
        self._writing = writing
        self._leaser = leaser
        self._keys = keys
        self._deadline = deadline
        self._block_bytes = leaser.namespace.spec.block_bytes[keys.lane.group]
        self._position = (0, 0)
        self._window: _Window | None = None

    async def take(self, chunk: Chunk) -> bool:
        """Puts the bytes of a message where they belong; False if no more can be stored."""
        fills: list[_Fill] = []
        for arrival in self._in_order(arrivals(chunk, self._block_bytes)):
            window = self._window
            if window is None or arrival.key >= window.stop:
                await self._fill(fills)
                fills = []
                await self.commit()
                window = await self._open(arrival.key)
            status = window.statuses[arrival.key - window.first]
            if status == BlockStatus.OK:
                fills.append(_Fill(window.block(arrival), arrival))
            elif status == BlockStatus.PRESENT:
                self.statuses[arrival.key] = status
            else:
                await self._fill(fills)
                self.statuses[arrival.key :] = [status] * (len(self.statuses) - arrival.key)
                return False
        await self._fill(fills)
        return True

    def _in_order(self, found: list[Arrival]) -> list[Arrival]:
        """Raises InvalidRequestError for what does not go on where the last message ended."""
        for arrival in found:
            index, offset = self._position
            jumps = arrival.key > index and not offset and not arrival.start
            if not jumps and (arrival.key, arrival.start) != self._position:
                raise InvalidRequestError(
                    f"index {arrival.key}, offset {arrival.start} does not follow: the stream "
                    f"is at index {index}, offset {offset}"
                )
            if arrival.key >= len(self.statuses):
                raise InvalidRequestError(
                    f"index is {arrival.key}; the stream has {len(self.statuses)} keys"
                )
            goes_on = arrival.key, arrival.start + len(arrival.data)
            self._position = (arrival.key + 1, 0) if arrival.status else goes_on
        return found

    def require_complete(self) -> None:
        """Raises InvalidRequestError if the stream ended within a block."""
        index, offset = self._position
        if offset:
            raise InvalidRequestError(
                f"the stream ended at offset {offset} of index {index}, before the digest"
            )

    async def _open(self, index: int) -> _Window:
        """Reserves slots from this key on."""
        count = window_blocks(self._block_bytes, self._writing.room(self._leaser, self._keys))
        stop = min(index + count, len(self.statuses))
        keys = part_of(self._keys, index, stop)
        lease, statuses = await self._writing.reserve(self._leaser, keys, self._deadline)
        table = self._leaser.namespace.groups[keys.lane.group].table
        slots = [slot for part in lease.parts for slot in part.slots]
        cells = [cell_of(table, slot)[: self._block_bytes] if slot >= 0 else None for slot in slots]
        self._window = _Window(index, lease, statuses, cells)
        return self._window

    async def _fill(self, fills: list[_Fill]) -> None:
        """Begins to copy pieces to their slots, and to compare digests, when those before are
        done: meanwhile the next message comes.
        """
        window = self._window
        if not fills or window is None:
            return
        await self._settle(window)
        window.fills = fills
        window.copying = self._writing.copy(fills)

    async def _settle(self, window: _Window) -> None:
        """Waits for the copy under way, and notes what it completed.

        A cancelled call leaves it under way: `close` knows.
        """
        if window.copying is None:
            return
        genuine = await asyncio.shield(window.copying)
        fills, window.copying = window.fills, None
        self._writing.renew(self._leaser, window.lease)
        for fill, is_genuine in zip(fills, genuine, strict=True):
            if not fill.arrival.status:
                continue
            if is_genuine:
                window.complete.append(fill.arrival.key)
            else:
                self.statuses[fill.arrival.key] = BlockStatus.DIGEST_MISMATCH

    async def commit(self) -> None:
        """Makes blocks of what is complete, and gives back the other slots of the window."""
        window = self._window
        if window is None:
            return
        await self._settle(window)
        if window.complete:
            indexes = [index - window.first for index in window.complete]
            outcome = await self._writing.commit(self._leaser, window.lease, indexes)
            for index, status in zip(window.complete, outcome, strict=True):
                self.statuses[index] = status
        self.close()

    def close(self) -> None:
        """Gives slots back, at once or when the mover that still writes has done."""
        window, self._window = self._window, None
        if window is None:
            return
        if window.copying is not None and not window.copying.done():
            window.copying.add_done_callback(lambda _: self._writing.release(window.lease))
        else:
            self._writing.release(window.lease)


def _copy_all(fills: list[_Fill]) -> list[bool]:
    """Whether each block that is complete has the digest that was sent. Called by a mover."""
    genuine = []
    for block, arrival in fills:
        target = block.cell[arrival.start : arrival.start + len(arrival.data)]
        np.copyto(target, np.frombuffer(arrival.data, np.uint8))
        block.hash.update(target.data)
        genuine.append(not arrival.status or block.hash.digest() == arrival.digest)
    return genuine

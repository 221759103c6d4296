"""Blocks as a stream of messages, for workers without shared memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import xxhash

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.serving.loading import Loading
from kvtier.agent.sessions.grants import Granted, Grants
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.sessions.stream_sessions import StreamSessions, require_connected
from kvtier.agent.turns import data_line
from kvtier.core.block import BlockKeys, BlockStatus, Wait
from kvtier.core.block_stream import Cut, cuts, encode
from kvtier.memory import ByteArray
from kvtier.tiers.arena import cell_of

#: What a stream leases at one time, at least one block.
WINDOW_BYTES = 16 << 20
WINDOW_BLOCKS = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """The blocks of one stream, and where it begins: a key, and an offset in its payload."""

    keys: BlockKeys
    index: int = 0
    offset: int = 0
    wait: Wait = Wait.ALL
    stop_at_gap: bool = False
    hold_id: int = 0


class Reading:
    """Reads blocks from slots that it leases some at a time.

    A lease is renewed with every message that the reader takes. When the reader is slower than
    that, the lease ends as others do; once it reads on, what is left is leased again.
    """

    def __init__(
        self,
        grants: Grants,
        loading: Loading,
        mover: Mover,
        sessions: StreamSessions,
        lifecycle: Lifecycle,
    ) -> None:
        self._grants = grants
        self._loading = loading
        self._mover = mover
        self._sessions = sessions
        self._lifecycle = lifecycle

    async def read(
        self, session: Session, wanted: Wanted, deadline: float | None
    ) -> AsyncGenerator[bytes]:
        """Messages, each made when it is asked for; close the iterator at the end.

        Slower tiers are waited for until the deadline, on the clock of leases.
        """
        size_bytes = session.namespace.spec.block_bytes[wanted.keys.lane.group]
        reader = _Reader(wanted.index, wanted.offset, size_bytes)
        with self._sessions.streaming(session) as leaser:
            if wanted.wait is not Wait.BREAK_EVEN:
                await self._start_promotion(session, wanted)
            while reader.index < len(wanted.keys.hashes):
                await data_line().turn()  # leasing takes as long as copying a message
                self._lifecycle.require_serving()
                require_connected(session)
                speed = session.compute_seconds_per_block
                granted = await self._lease(leaser, wanted, reader, deadline, speed)
                try:
                    group = wanted.keys.lane.group
                    async for message in self._send(leaser, granted, reader, group):
                        yield message
                        self._sessions.renew(session)
                finally:
                    self._grants.release(granted.lease)

    async def _start_promotion(self, session: Session, wanted: Wanted) -> None:
        """The beginning is sent while the rest is on its way to HOST."""
        rest = part_of(wanted.keys, wanted.index, len(wanted.keys.hashes))
        if -1 in session.namespace.groups[rest.lane.group].find_many(rest.lane, rest.hashes):
            await self._loading.prefetch(session, rest)

    async def _lease(
        self,
        leaser: Session,
        wanted: Wanted,
        reader: _Reader,
        deadline: float | None,
        compute_seconds_per_block: float,
    ) -> Granted:
        """Leases what comes next."""
        keys = wanted.keys
        room = self._grants.room(leaser, leaser.namespace.groups[keys.lane.group])
        stop = min(reader.index + window_blocks(reader.block_bytes, room), len(keys.hashes))
        patience = None if deadline is None else max(0.0, deadline - self._grants.leases.now())
        return await self._loading.load(
            leaser,
            [part_of(keys, reader.index, stop)],
            wait=wanted.wait,
            patience_seconds=patience,
            stop_at_gap=wanted.stop_at_gap,
            hold_id=wanted.hold_id if stop == len(keys.hashes) else 0,
            compute_seconds_per_block=compute_seconds_per_block,
        )

    async def _send(
        self, leaser: Session, granted: Granted, reader: _Reader, group: int
    ) -> AsyncGenerator[bytes]:
        """Messages of what was leased, for as long as the lease lasts.

        A mover makes the digests, of all that was leased at once. Each message is copied in one
        turn of the loop, some 0.1 ms, in which the lease cannot end: bytes objects are made with
        the GIL held.
        """
        first, lease, leases = reader.index, granted.lease, self._grants.leases
        if lease.size_bytes and not leases.is_active(lease):
            return
        statuses = reader.judged(granted)
        cells = self._cells(leaser, granted, group)
        digests = await self._mover.run(_digests, cells)
        for cut in cuts(statuses, reader.block_bytes, 0, reader.offset):
            await data_line().turn()
            if cut.pieces and not leases.is_active(lease):
                return
            yield _message(cut, cells, digests, first)
            reader.advance(cut, first, granted)
            self._grants.renew(leaser, [lease.lease_id], 0.0)

    def _cells(self, leaser: Session, granted: Granted, group: int) -> list[ByteArray | None]:
        """Each key's payload in HOST; None where it is not OK."""
        slots = iter([slot for part in granted.lease.parts for slot in part.slots])
        table = leaser.namespace.groups[group].table
        size_bytes = leaser.namespace.spec.block_bytes[group]
        return [
            cell_of(table, next(slots))[:size_bytes] if status == BlockStatus.OK else None
            for status in granted.statuses
        ]


class _Reader:
    """How far one stream has come: the next key, and the offset in its payload."""

    def __init__(self, index: int, offset: int, block_bytes: int) -> None:
        self.index = index
        self.offset = offset
        self.block_bytes = block_bytes
        self._generation = 0

    def judged(self, granted: Granted) -> list[int]:
        """Statuses of what was leased. A block that was sent in part must be the same still."""
        statuses = list(granted.statuses)
        if self._generation and granted.generations[0] != self._generation:
            statuses[0] = BlockStatus.EXPIRED
        return statuses

    def advance(self, cut: Cut, first: int, granted: Granted) -> None:
        """The reader has taken a message."""
        index, self.offset = cut.end
        self.index = first + index
        self._generation = granted.generations[index] if self.offset else 0


def _digests(cells: Sequence[ByteArray | None]) -> list[bytes]:
    """Of each payload; nothing of one that is not there."""
    return [b"" if cell is None else xxhash.xxh3_128_digest(cell.data) for cell in cells]


def _message(
    cut: Cut, cells: Sequence[ByteArray | None], digests: Sequence[bytes], first: int
) -> bytes:
    """A cut's bytes, copied from their slots, and the digests of the blocks that end in it."""
    payloads, ended = [], []
    for index, start, stop in cut.pieces:
        cell = cells[index]
        assert cell is not None
        payloads.append(cell[start:stop])
        if stop == len(cell):
            ended.append(digests[index])
    placed = Cut(cut.index + first, cut.offset, cut.pieces, cut.statuses)
    return encode(placed, payloads, ended, with_statuses=True)


def part_of(keys: BlockKeys, start: int, stop: int) -> BlockKeys:
    """Some of the keys, with what comes before them."""
    if start == 0 and stop == len(keys.hashes):
        return keys
    parent = keys.hashes[start - 1] if start else keys.parent
    return BlockKeys(keys.lane, keys.hashes[start:stop], parent, keys.position + start)


def window_blocks(block_bytes: int, room: int) -> int:
    """How many blocks a stream leases or reserves at one time: what its session has room for, and
    one that is refused where there is none."""
    return max(1, min(WINDOW_BLOCKS, WINDOW_BYTES // block_bytes, room))

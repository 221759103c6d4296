"""ReadBlocks and WriteBlocks: messages to and from `agent.serving.reading` and `writing`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from kvtier.agent.serving.reading import Reading, Wanted
from kvtier.agent.serving.writing import Writing
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.sessions.stream_sessions import StreamSessions
from kvtier.core.block import BlockKeys, Wait
from kvtier.core.block_stream import MAX_MESSAGE_BYTES, Chunk, decode, ended_by
from kvtier.core.lease import LeaseTable
from kvtier.errors import InvalidRequestError
from kvtier.rpc import conversion as convert
from kvtier.rpc.server import Call, patience_seconds
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

KeysOf = Callable[[block_pb2.BlockKeys], BlockKeys]


@dataclass(frozen=True)
class BlockStreams:
    """What the streaming methods need."""

    sessions: StreamSessions
    leases: LeaseTable
    reading: Reading
    writing: Writing

    def read(
        self, session: Session, keys: BlockKeys, request: pb.ReadBlocksRequest, call: Call
    ) -> AsyncGenerator[bytes]:
        count = len(keys.hashes)
        if request.start_index >= count:
            raise InvalidRequestError(f"start_index is {request.start_index}; keys has {count}")
        block_bytes = session.namespace.spec.block_bytes[keys.lane.group]
        if request.start_offset >= block_bytes:
            raise InvalidRequestError(
                f"start_offset is {request.start_offset}; a block has {block_bytes} bytes"
            )
        if int(request.wait) not in (0, *map(int, Wait)):
            raise InvalidRequestError(
                f"wait is {int(request.wait)}; it must be BEST_EFFORT, ALL or BREAK_EVEN"
            )
        wanted = Wanted(
            keys,
            request.start_index,
            request.start_offset,
            Wait(request.wait or Wait.ALL),
            request.stop_at_gap,
            request.hold_id,
        )
        return self.reading.read(session, wanted, self._deadline(call))

    async def write(
        self, session: Session, messages: AsyncIterator[bytes], call: Call, keys_of: KeysOf
    ) -> pb.WriteBlocksResponse:
        first = _chunk(await anext(messages, b""))
        if first.keys is None:
            raise InvalidRequestError("keys is missing: the first message has to carry it")
        try:
            keys = keys_of(block_pb2.BlockKeys.FromString(first.keys))
        except DecodeError as error:
            raise InvalidRequestError(f"keys: not a BlockKeys: {error}") from error
        convert.check_parents([keys])
        statuses = await self.writing.write(
            session, keys, _chunks(first, messages), self._deadline(call)
        )
        return pb.WriteBlocksResponse(status=statuses)  # type: ignore[arg-type]

    def _deadline(self, call: Call) -> float | None:
        """On the clock of leases."""
        patience = patience_seconds(call)
        return None if patience is None else self.leases.now() + patience


async def _chunks(first: Chunk, messages: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
    """The first one, which may be keys alone, and those after it."""
    if first.data:
        yield first
    async for message in messages:
        chunk = _chunk(message)
        if chunk.keys is not None:
            raise InvalidRequestError("keys is set again: only the first message has it")
        if not chunk.data:
            raise InvalidRequestError("data is empty")
        yield chunk


def _chunk(message: bytes) -> Chunk:
    """What a worker sent; each digest says that a block ends."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"the message has {len(message)} bytes; at most {MAX_MESSAGE_BYTES} "
            "(GetCapabilities.max_chunk_bytes)"
        )
    chunk = decode(message)
    chunk.statuses = ended_by(chunk.digests)
    return chunk

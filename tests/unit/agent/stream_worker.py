"""A worker without shared memory that calls the agent's parts directly."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.serving.reading import Reading, Wanted
from kvtier.agent.serving.writing import Writing
from kvtier.agent.sessions.sessions import Session
from kvtier.agent.sessions.stream_sessions import StreamSessions
from kvtier.core.block import BlockKeys
from kvtier.core.block_stream import Chunk, arrivals, cuts, decode, encode, ended_by
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray
from kvtier.rpc.block_streams import BlockStreams
from kvtier.tiers.size_class import SizeClass
from tests.model.node import EVERYTHING, Node

TTL_SECONDS = 60.0
OK = 1


def payload(block_hash: bytes, size: int) -> ByteArray:
    seed = int.from_bytes(hashlib.sha256(block_hash).digest()[:4])
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


def streams_of(node: Node, lifecycle: Lifecycle) -> BlockStreams:
    """The streaming parts of an agent; everybody may open sessions."""
    sessions = StreamSessions(
        node.sessions, node.leases, access=EVERYTHING, ttl_seconds=TTL_SECONDS
    )
    parts = node.mover, sessions, lifecycle
    reading = Reading(node.grants, node.loading, *parts)
    writing = Writing(node.grants, node.storing, *parts)
    return BlockStreams(sessions, node.leases, reading, writing)


@dataclass
class StreamWorker:
    """One session. `received` has the payloads that arrived whole and verified."""

    node: Node
    block_bytes: int
    name: str = "streamed"
    received: dict[int, bytes] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle()
        streams = streams_of(self.node, self.lifecycle)
        self.sessions, self.reading = streams.sessions, streams.reading
        self.writing = streams.writing
        [self.session] = self.node.run(self._open())
        self._partial = b""

    async def _open(self) -> Session:
        spec = NamespaceSpec(name=self.name, block_bytes=(self.block_bytes,))
        return self.sessions.open(spec, "")[0]

    @property
    def size_class(self) -> SizeClass:
        size_class: SizeClass = self.session.namespace.groups[0]
        return size_class

    def chunks(self, keys: BlockKeys) -> Iterator[Chunk]:
        """The messages that store blocks, as they arrive."""
        for cut in cuts([OK] * len(keys.hashes), self.block_bytes):
            whole = {key: payload(keys.hashes[key], self.block_bytes) for key, _, _ in cut.pieces}
            pieces = [whole[key][start:stop] for key, start, stop in cut.pieces]
            digests = [
                xxhash.xxh3_128_digest(whole[key].data)
                for key, _, stop in cut.pieces
                if stop == self.block_bytes
            ]
            chunk = decode(encode(cut, pieces, digests, with_statuses=False))
            chunk.statuses = ended_by(chunk.digests)
            yield chunk

    async def write(
        self, keys: BlockKeys, chunks: Sequence[Chunk] | AsyncIterator[Chunk] | None = None
    ) -> list[int]:
        if chunks is None:
            chunks = list(self.chunks(keys))
        source = chunks if isinstance(chunks, AsyncIterator) else _one_by_one(chunks)
        return await self.writing.write(self.session, keys, source, None)

    def messages(self, keys: BlockKeys, **wanted: int) -> AsyncGenerator[bytes]:
        return self.reading.read(self.session, Wanted(keys, **wanted), None)  # type: ignore[arg-type]

    def take(self, message: bytes) -> None:
        """Puts together what arrives."""
        for key, start, data, status, digest in arrivals(decode(message), self.block_bytes):
            self._partial = (self._partial if start else b"") + bytes(data)
            if status:
                self.statuses[key] = status
            if status == OK:
                assert xxhash.xxh3_128_digest(self._partial) == digest
                self.received[key] = self._partial

    async def read(self, keys: BlockKeys) -> None:
        async for message in self.messages(keys):
            self.take(message)

    def is_right(self, keys: BlockKeys, key: int) -> bool:
        return self.received[key] == payload(keys.hashes[key], self.block_bytes).tobytes()


async def _one_by_one(chunks: Sequence[Chunk]) -> AsyncIterator[Chunk]:
    for chunk in chunks:
        yield chunk

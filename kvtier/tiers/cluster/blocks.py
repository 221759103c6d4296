"""Blocks of namespaces in the cluster: sealed where they leave, verified where they arrive.

All calls block, from any thread. Deadlines are values of `time.monotonic()`. `identity` is the
`identity_digest` of one generation of a namespace.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kvtier.core.block import BlockKey, Lane
from kvtier.memory import ByteArray
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.exchange import Fetch
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.replies import Misfit
from kvtier.tiers.cluster.sealing import (
    HEADER_BYTES,
    MAX_PART_BYTES,
    Fault,
    Header,
    Sealer,
    SealError,
    key_name,
    name_pattern,
    part_name,
)
from kvtier.tiers.cluster.store import ClusterStore, Fetched

#: So much longer than its head a further part lives, however long the head took to follow it.
_PART_TTL_SECONDS = 60
_DELETE_BATCH = 4096
_MAX_CODED = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """A block to be fetched: where to, a cell of at least `length` bytes."""

    lane: Lane
    block_hash: bytes
    cell: ByteArray
    length: int


#: The key with parent and position as its writer said; None if there is no such block; why what is
#: there was refused; or why nobody knows.
FetchedBlock = BlockKey | SealError | ClusterDownError | None


class ClusterBlocks:
    """Blocks under names that begin with `key_prefix`, each for `ttl_seconds` from its store on.

    ValueError for a prefix that `key_name` does not allow.
    """

    def __init__(
        self, store: ClusterStore, sealer: Sealer, *, key_prefix: str, ttl_seconds: int
    ) -> None:
        name_pattern(key_prefix, b"")
        self._store = store
        self._sealer = sealer
        self._key_prefix = key_prefix
        self._ttl_seconds = ttl_seconds
        #: Identities whose values were not of the size of a plain block when last fetched: where
        #: that is usual, asking for sizes costs less than receiving what does not fit.
        self._coded: set[bytes] = set()

    def exist(
        self, identity: bytes, lane: Lane, hashes: Sequence[bytes], deadline: float
    ) -> list[bool | None]:
        """Whether there are heads of these blocks, unverified; None where nobody knows.

        One round trip for each server and 4096 blocks. Raises ClusterDownError if no server
        answered.
        """
        return self._store.exist(self._names(identity, lane, hashes), deadline)

    def store(
        self,
        identity: bytes,
        key: BlockKey,
        payload: ByteArray,
        codec: Codec,
        deadline: float,
        ttl_seconds: float | None = None,
    ) -> None:
        """Replaces what is there of this block. Raises ClusterDownError; ValueError for no block.

        It lives for `ttl_seconds`, of at least 1, if that is less than for all blocks.

        `payload` is the whole block, contiguous; it is sent from where it is, with Codec.NONE, and
        must not change until this returns.
        """
        sealed = self._sealer.seal(identity, key, payload, codec)
        header, (first, *others) = sealed.header, sealed.parts
        name = self._name(identity, key.lane, key.block_hash)
        ttl = min(self._ttl_seconds, int(ttl_seconds or self._ttl_seconds))
        # The head last: a reader that finds it finds all parts.
        for part, stored in enumerate(others, start=1):
            buffers = [np.frombuffer(stored, np.uint8)]
            self._store.store(
                part_name(name, header, part), buffers, ttl + _PART_TTL_SECONDS, deadline
            )
        buffers = [np.frombuffer(sealed.head, np.uint8), np.frombuffer(first, np.uint8)]
        self._store.store(name, buffers, ttl, deadline)

    def remaining_seconds(
        self, identity: bytes, wanted: Sequence[Wanted], deadline: float
    ) -> list[float | None]:
        """How long blocks live on; None where nobody knows. Raises nothing."""
        names = [self._name(identity, each.lane, each.block_hash) for each in wanted]
        return self._store.remaining_seconds(names, deadline)

    def fetch(
        self, identity: bytes, wanted: Sequence[Wanted], deadline: float
    ) -> list[FetchedBlock]:
        """Blocks of exactly the lengths that are wanted, verified; an answer for each.

        Raises nothing. A cell holds the block if the answer is a key, and anything otherwise, also
        where there is no block. Cells are contiguous, and nobody else uses them meanwhile. What
        was coded takes up to twice its length of memory beside until this returns.

        Plain blocks of up to 2 MiB take one round trip, one payload of each server on its way at a
        time; others take one more for sizes and one more for further parts, for all blocks at once.
        """
        readings = [
            _Reading(self._name(identity, each.lane, each.block_hash), identity, each)
            for each in wanted
        ]
        if identity in self._coded:
            sizes = self._store.sizes([each.name for each in readings], deadline)
            for reading, size_bytes in zip(readings, sizes, strict=True):
                reading.make_room(size_bytes or 0)
        misfits = self._fetch_heads(readings, deadline)
        for reading, size_bytes in self._fetch_heads(misfits, deadline).items():
            reading.failure = SealError(Fault.DAMAGED, f"now the value has {size_bytes} bytes")
        self._remember(identity, readings)
        self._fetch_parts(readings, deadline)
        return [each.verified(self._sealer) for each in readings]

    def delete(self, identity: bytes, lane: Lane, hashes: Sequence[bytes], deadline: float) -> int:
        """How many there were, as far as servers answered. Raises ClusterDownError if none did.

        Heads only: without them there is no block, and further parts end by their TTL.
        """
        return self._store.delete(self._names(identity, lane, hashes), deadline)

    def delete_all(self, identity: bytes, deadline: float) -> int:
        """All blocks of a generation with all their parts; how many there were.

        Raises ClusterDownError, when some may be gone already. What is stored meanwhile may stay.
        """
        deleted = 0
        prefix = name_pattern(self._key_prefix, identity).removesuffix(b"*")
        names = self._store.scan(prefix, deadline)
        while batch := list(islice(names, _DELETE_BATCH)):
            heads = [each for each in batch if each.endswith(b"}")]
            deleted += self._store.delete(heads, deadline)
            self._store.delete([each for each in batch if not each.endswith(b"}")], deadline)
        return deleted

    def count_all(self, identity: bytes, deadline: float) -> int:
        """How many blocks of a generation there are, about: what comes, goes or moves between
        servers meanwhile is missed or counted twice. Raises ClusterDownError."""
        prefix = name_pattern(self._key_prefix, identity).removesuffix(b"*")
        return sum(name.endswith(b"}") for name in self._store.scan(prefix, deadline))

    def _name(self, identity: bytes, lane: Lane, block_hash: bytes) -> bytes:
        return key_name(self._key_prefix, identity, lane, block_hash)

    def _names(self, identity: bytes, lane: Lane, hashes: Sequence[bytes]) -> list[bytes]:
        """The same for many, whose names differ by the hash at their end."""
        start = self._name(identity, lane, b"").removesuffix(b"}")
        return [b"%b%b}" % (start, hexlify(each)) for each in hashes]

    def _fetch_heads(self, readings: Iterable[_Reading], deadline: float) -> dict[_Reading, int]:
        """Receives first values. Returns those of another size that may be right, with that."""
        readings = list(readings)
        fetches = [Fetch(each.name, HEADER_BYTES, each.first) for each in readings]
        misfits: dict[_Reading, int] = {}
        for reading, fetched in zip(readings, self._store.fetch(fetches, deadline), strict=True):
            if isinstance(fetched, bytes):
                reading.open(self._sealer, fetched)
            elif isinstance(fetched, ClusterDownError):
                reading.failure = fetched
            elif isinstance(fetched, Misfit):
                if reading.make_room(fetched.size_bytes):
                    misfits[reading] = fetched.size_bytes
                else:
                    self._refuse(reading, fetched.size_bytes, deadline)
        return misfits

    def _refuse(self, reading: _Reading, size_bytes: int, deadline: float) -> None:
        """Finds out what is wrong with a value whose size is no block's: its head says it best."""
        try:
            head = self._store.fetch_head(reading.name, HEADER_BYTES, deadline)
        except ClusterDownError:
            head = None
        if head is not None:
            reading.open(self._sealer, head, size_bytes)
        if reading.failure is None:
            reading.failure = SealError(Fault.DAMAGED, f"a value of {size_bytes} bytes is no block")

    def _fetch_parts(self, readings: Sequence[_Reading], deadline: float) -> None:
        parts = [(reading, part) for reading in readings for part in reading.further_parts()]
        fetches = [reading.fetch_of(part) for reading, part in parts]
        for (reading, part), fetched in zip(
            parts, self._store.fetch(fetches, deadline), strict=True
        ):
            reading.take(part, fetched)

    def _remember(self, identity: bytes, readings: Sequence[_Reading]) -> None:
        if any(each.is_coded for each in readings):
            if len(self._coded) >= _MAX_CODED:  # old generations
                self._coded.clear()
            self._coded.add(identity)
        elif any(each.header is not None for each in readings):
            self._coded.discard(identity)


class _Reading:
    """A block on its way into its cell, through all that may be wrong with it.

    `failure` is final. No SealError is kept that was raised: its frames would hold the cell.
    """

    def __init__(self, name: bytes, identity: bytes, wanted: Wanted) -> None:
        self.name = name
        self.header: Header | None = None
        self.failure: SealError | ClusterDownError | None = None
        self.is_coded = False
        self._identity = identity
        self._wanted = wanted
        self._cell = wanted.cell[: wanted.length]
        #: Where the first value's payload goes: to the cell, if it may be the block itself.
        self.first = self._cell[:MAX_PART_BYTES]
        #: Where all stored bytes go.
        self._room = self._cell

    def make_room(self, value_bytes: int) -> bool:
        """For a first value of this size, unless no block of this length has one."""
        size_bytes = value_bytes - HEADER_BYTES
        plain = self._cell[:MAX_PART_BYTES]
        if not 0 < size_bytes <= len(plain):
            return False
        self.is_coded = size_bytes < len(plain)
        self.first = np.empty(size_bytes, np.uint8) if self.is_coded else plain
        return True

    def open(self, sealer: Sealer, head: bytes, value_bytes: int | None = None) -> None:
        """The first value is there; its size is that of the room unless told."""
        if value_bytes is None:
            value_bytes = HEADER_BYTES + len(self.first)
        key, length = BlockKey(self._wanted.lane, self._wanted.block_hash), self._wanted.length
        try:
            header = sealer.open_head(head, value_bytes, self._identity, key, length)
        except SealError as error:
            self.failure = SealError(error.fault, str(error))
            return
        if header.length != length:
            what = f"the block has {header.length} bytes, not {length}"
            self.failure = SealError(Fault.DAMAGED, what)
            return
        self.header = header
        if header.codec != Codec.NONE:
            self.is_coded = True
            self._room = np.empty(header.stored_bytes, np.uint8)
        if not np.may_share_memory(self._room, self.first):
            self._room[header.span(0)] = self.first

    def further_parts(self) -> Iterator[int]:
        if self.header is not None:
            yield from range(1, self.header.parts)

    def fetch_of(self, part: int) -> Fetch:
        assert self.header is not None
        name = part_name(self.name, self.header, part)
        return Fetch(name, 0, self._room[self.header.span(part)])

    def take(self, part: int, fetched: Fetched) -> None:
        assert self.header is not None
        if isinstance(fetched, ClusterDownError):
            self.failure = self.failure or fetched
        elif not isinstance(fetched, bytes):
            size = "missing" if fetched is None else f"of {fetched.size_bytes} bytes"
            what = f"part {part} of {self.header.parts} is {size}"
            self.failure = self.failure or SealError(Fault.DAMAGED, what)

    def verified(self, sealer: Sealer) -> FetchedBlock:
        if self.failure is not None or self.header is None:
            return self.failure
        stored = None if self.header.codec == Codec.NONE else self._room
        try:
            sealer.verify(self.header, self._cell, stored)
        except SealError as error:
            return SealError(error.fault, str(error))
        return self.header.key

"""Loading and storing by streams, without the input and output.

`loading` and `storing` are generators: each step that they yield is one exchange with the agent,
done by whoever drives them, who blocks or awaits. They are sent its answer, or thrown its
KvtierError, and return what the verb returns.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import xxhash

from kvtier.client.arrays import Rows
from kvtier.client.requests import Place, keys_message, lookup_of, lookup_request, shifted
from kvtier.core.block import BlockStatus, Match, Wait
from kvtier.core.block_stream import arrivals, cuts, decode, encode, encode_keys
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import (
    AgentUnavailableError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
)
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

#: Of one stream, which has the client's timeout; its keys are fewer than fit into a message.
_PART_BYTES: Final = 32 << 20
_PART_BLOCKS: Final = 4096
_OK: Final = int(BlockStatus.OK)
_STORED: Final = {_OK, int(BlockStatus.PRESENT)}
#: After these a stream goes on, if it has got further than before.
_BROKEN = (DeadlineExceededError, AgentUnavailableError)
#: So many messages may leave without anybody reading them.
_UNREAD_MESSAGES: Final = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request, one answer."""

    method: str
    request: Any


class Read:
    """A ReadBlocks into the caller's arrays: `request` says where it goes on, `take` is for each
    message. Both may be used again after a stream that broke off."""

    def __init__(
        self, keys: block_pb2.BlockKeys, rows: Rows, block_bytes: int, hold_id: int, wait: Wait
    ) -> None:
        self.statuses = [int(BlockStatus.ABSENT)] * len(rows)
        self.position = (0, 0)
        self._keys = keys
        self._rows = rows
        self._block_bytes = block_bytes
        self._hold_id = hold_id
        self._wait = wait
        self._hash = xxhash.xxh3_128()

    @property
    def is_complete(self) -> bool:
        return self.position[0] == len(self.statuses)

    @property
    def request(self) -> pb.ReadBlocksRequest:
        index, offset = self.position
        return pb.ReadBlocksRequest(
            keys=self._keys,
            start_index=index,
            start_offset=offset,
            wait=self._wait.name,
            hold_id=self._hold_id,
        )

    def take(self, message: bytes) -> None:
        """Copies a message's bytes to where they belong, and verifies blocks that are complete.

        Raises InternalError for a message that does not fit.
        """
        try:
            chunk = decode(message)
            found = arrivals(chunk, self._block_bytes)
        except InvalidRequestError as error:
            raise InternalError(f"the agent's stream is no stream of blocks: {error}") from error
        for key, start, data, status, digest in found:
            if (key, start) != self.position or key >= len(self.statuses):
                raise InternalError(
                    f"the agent's stream is out of order: key {key}, offset {start} at "
                    f"{self.position}"
                )
            self._copy(key, start, data)
            if not status:
                self.position = key, start + len(data)
                continue
            is_wrong = status == _OK and self._hash.digest() != digest
            self.statuses[key] = int(BlockStatus.DIGEST_MISMATCH) if is_wrong else status
            self.position = key + 1, 0

    def _copy(self, key: int, start: int, data: memoryview) -> None:
        """The digest is of what the caller gets."""
        if start == 0:
            self._hash.reset()
        if len(data):
            target = self._rows[key][start : start + len(data)]
            np.copyto(target, np.frombuffer(data, np.uint8))
            self._hash.update(target.data)


class Write:
    """A WriteBlocks of some of the keys, from the caller's arrays."""

    def __init__(
        self, keys: block_pb2.BlockKeys, rows: Rows, block_bytes: int, wanted: Sequence[int]
    ) -> None:
        self._keys = keys
        self._rows = rows
        self._block_bytes = block_bytes
        self._statuses = [0] * len(rows)
        for key in wanted:
            self._statuses[key] = _OK
        self.message_count = 0

    def messages(self) -> Iterator[bytes]:
        """From the beginning; each is made when it is asked for."""
        yield encode_keys(self._keys.SerializeToString())
        state = xxhash.xxh3_128()
        for cut in cuts(self._statuses, self._block_bytes):
            payloads, digests = [], []
            for key, start, stop in cut.pieces:
                if start == 0:
                    state.reset()
                payloads.append(self._rows[key][start:stop])
                state.update(payloads[-1].data)
                if stop == self._block_bytes:
                    digests.append(state.digest())
            self.message_count += 1
            yield encode(cut, payloads, digests, with_statuses=False)


Step = Call | Read | Write
Steps = Generator[Step, Any, T]


def asking(method: str, request: Any) -> Steps[Any]:
    """One call: its answer."""
    return (yield Call(method, request))


def loading(
    spec: NamespaceSpec,
    hashes: Sequence[bytes],
    rows: Rows,
    place: Place,
    hold_id: int = 0,
    wait: Wait = Wait.ALL,
) -> Steps[list[int]]:
    """As `Namespace.load_into`."""
    statuses = [int(BlockStatus.ABSENT)] * len(hashes)
    block_bytes = spec.block_bytes[place.group]
    for part in _parts(len(hashes), block_bytes):
        keys = keys_message(hashes[part], shifted(place, hashes, part.start))
        hold = hold_id if part.stop == len(hashes) else 0
        read = Read(keys, rows[part], block_bytes, hold, wait)
        yield from _to_the_end(read)
        statuses[part] = read.statuses
        if _OK not in read.statuses:
            break
    return statuses


def _to_the_end(read: Read) -> Steps[None]:
    """A stream that broke off goes on where it ended, as long as each comes further.

    One that did not may be tried once more if that costs no time: what a connection had brought is
    lost with it.
    """
    may_repeat = True
    while not read.is_complete:
        before = read.position
        try:
            yield read
        except _BROKEN as error:
            if read.position == before:
                if isinstance(error, DeadlineExceededError) or not may_repeat:
                    raise
                may_repeat = False
        else:
            if not read.is_complete:
                raise InternalError(f"the agent's stream ended at {read.position}")


def storing(
    spec: NamespaceSpec,
    hashes: Sequence[bytes],
    rows: Rows,
    place: Place,
    wanted: Collection[int] | None = None,
) -> Steps[list[int]]:
    """As `Namespace.store`. With `wanted`, only these keys have bytes and are sent; the statuses of
    others say nothing."""
    statuses = [int(BlockStatus.REFUSED)] * len(hashes)
    block_bytes = spec.block_bytes[place.group]
    for part in _parts(len(hashes), block_bytes):
        here = shifted(place, hashes, part.start)
        mine: Sequence[int] = range(len(hashes[part]))
        if wanted is not None:
            mine = [key for key in mine if part.start + key in wanted]
        statuses[part] = yield from _store_part(hashes[part], rows[part], here, block_bytes, mine)
        if not _STORED.issuperset(statuses[part]):
            break
    return statuses


def _store_part(
    hashes: Sequence[bytes], rows: Rows, place: Place, block_bytes: int, wanted: Sequence[int]
) -> Steps[list[int]]:
    """Sends what is wanted and not there. After a stream that broke off, what is not there yet."""
    request = lookup_request(hashes, place, Match.PRESENCE)
    fewest = len(hashes) + 1
    while True:
        found = lookup_of((yield Call("LookupPrefix", request)), len(hashes))
        absent = [key for key in wanted if not found.present[key]]
        statuses = [int(BlockStatus.PRESENT)] * len(hashes)
        if not absent:
            return statuses
        write = Write(keys_message(hashes, place), rows, block_bytes, absent)
        try:
            answer = yield write
        except _BROKEN as error:
            is_silent = write.message_count <= _UNREAD_MESSAGES
            if len(absent) >= fewest or (is_silent and isinstance(error, DeadlineExceededError)):
                raise
            fewest = len(absent)
            continue
        for key in absent:
            statuses[key] = answer.status[key] or int(BlockStatus.REFUSED)
        return statuses


def _parts(count: int, block_bytes: int) -> list[slice]:
    step = min(_PART_BLOCKS, max(1, _PART_BYTES // block_bytes))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]

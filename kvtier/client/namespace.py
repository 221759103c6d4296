"""The verbs of a worker."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from kvtier.client.arrays import Rows, is_read_only, rows_of
from kvtier.client.connection import Connection
from kvtier.client.device import UnreadableDeviceError
from kvtier.client.private_slots import private_load, private_reserve
from kvtier.client.requests import START, Lookup, Place, block_bytes_of, lookup_of, lookup_request
from kvtier.client.requests import duration as _duration
from kvtier.client.requests import keys_message as _keys
from kvtier.client.requests import seconds as _seconds
from kvtier.client.requests import shifted as _shifted
from kvtier.client.slots import (
    EXPIRED,
    OK,
    PENDING,
    REFUSED,
    GrantedSlots,
    Loaded,
    Reservation,
    copy_out,
)
from kvtier.client.stream_connection import StreamConnection
from kvtier.client.streaming import Steps, asking, loading, storing
from kvtier.core.block import BlockStatus, Match, Wait
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import (
    AgentUnavailableError,
    InvalidRequestError,
    KvtierError,
    OverloadedError,
)
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

if TYPE_CHECKING:
    from kvtier.client.client import Client

__all__ = ["START", "Lookup", "Namespace", "Place"]

log = logging.getLogger(__name__)

#: A load or store of more is cut, so that no lease or reservation is held for long.
_PART_BYTES = 256 << 20
#: What is copied while the agent reads on.
_PIECE_BYTES = 32 << 20
_COPY_TTL_SECONDS = 2.0
T = TypeVar("T")

_LATER = {PENDING, REFUSED}
_STORED = {int(BlockStatus.OK), int(BlockStatus.PRESENT)}


class Namespace:
    """One namespace of an agent, for one worker. Thread-safe.

    Keys are hashes of consecutive blocks of one sequence; `place` says where they stand in it.
    A call that fails raises a KvtierError within the client's timeout: AgentUnavailableError,
    DeadlineExceededError or OverloadedError where the caller should go on without the cache,
    InvalidRequestError where it should be mended. After the first lost call further ones fail at
    once until the agent answers again.
    """

    def __init__(self, client: Client, spec: NamespaceSpec) -> None:
        self._client = client
        self.spec = spec

    def lookup(
        self,
        hashes: Sequence[bytes],
        *,
        place: Place = START,
        match: Match = Match.PREFIX,
        shards: Sequence[int] = (),
        hold_seconds: float = 0.0,
        compute_seconds_per_block: float = 0.0,
        prefetch: bool = False,
        request_id: str = "",
    ) -> Lookup:
        """How much of a sequence is cached; changes nothing, except as asked.

        With `prefetch`, what slower tiers have of it is brought to HOST in the background.

        With `hold_seconds`, what was found is kept until it is loaded, for at most so long. With
        `shards`, a block counts if all of them have it. `compute_seconds_per_block` tells the agent
        how fast the caller computes; 0.0 tells nothing. `request_id` is the engine's name for what
        it looks up for: `kvtier requests` shows it, and `--request` takes it.
        """
        if not hashes:
            return Lookup(0)
        request = lookup_request(
            hashes,
            place,
            match,
            shards,
            hold_seconds,
            compute_seconds_per_block,
            prefetch=prefetch,
            request_id=request_id,
        )
        return lookup_of(self._call("LookupPrefix", request), len(hashes))

    def load(
        self,
        hashes: Sequence[bytes],
        *,
        place: Place = START,
        hold_id: int = 0,
        ttl_seconds: float = 0.0,
        wait: Wait = Wait.ALL,
        compute_seconds_per_block: float = 0.0,
        lease_count: int = 0,
    ) -> Loaded:
        """Leases blocks and returns views of them in shared memory; see `Loaded`.

        `wait` says what becomes of blocks in slower tiers; PENDING is what did not come. ALL waits
        for them until shortly before the client's timeout, BEST_EFFORT does not, and lets them be
        brought in the background. BREAK_EVEN gives the leading blocks that are there sooner than
        the caller would compute them, at `compute_seconds_per_block` (0.0: as it said last, in
        whatever call; it must have): with as little beside as a wait that turns out to be in vain.
        Of these, `lease_count` at most (0: all) are leased and waited for now; that the others will
        be loaded too counts in what is worth it. Without shared memory they are views of copies, of
        the first `lease_count` alone.
        """
        copied = private_load(self.spec, hashes[: lease_count or None], place, hold_id, wait)
        if (loaded := self._by_stream(copied)) is not None:
            return loaded
        with self._client.attached() as connection:
            token = self._session(connection)
            slots, lease = self._lease(
                connection,
                token,
                hashes,
                place,
                hold_id,
                ttl_seconds,
                wait,
                compute_seconds_per_block,
                lease_count,
            )
        return Loaded(
            slots,
            _seconds(lease.ttl),
            lambda: connection.release_later(token, lease.lease_id),
        )

    def load_into(
        self,
        hashes: Sequence[bytes],
        out: Any,
        *,
        place: Place = START,
        hold_id: int = 0,
        wait: Wait = Wait.ALL,
        compute_seconds_per_block: float = 0.0,
    ) -> list[int]:
        """Copies blocks into the caller's arrays or tensors; one BlockStatus per key.

        `out` is one contiguous array of [blocks, block_bytes] bytes in all, of any type, or a
        sequence of arrays, one per block; tensors are on the CPU or on the client's device. Only
        entries that are OK hold a block; others may have been written to. What a slower tier has is
        waited for, until the client's timeout for each 32 MiB: PENDING is what came too late. Stops
        asking at the first part of which nothing was there. With another `wait` than ALL it is as
        for `load`, and with BREAK_EVEN the first part that is not there as a whole is the last one.
        """
        rows = self._rows(out, hashes, place)
        if is_read_only(rows):
            raise InvalidRequestError("out is read-only")
        steps = loading(self.spec, hashes, rows, place, hold_id, wait)
        if (streamed := self._by_stream(steps)) is not None:
            return streamed
        statuses = [int(BlockStatus.ABSENT)] * len(hashes)
        parts = self._parts(0, len(hashes), place, _PART_BYTES)
        for part in parts:
            hold = hold_id if part.stop == len(hashes) else 0
            if wait is Wait.BREAK_EVEN:
                speed = compute_seconds_per_block
                statuses[part] = self._copy(hashes, rows, part, place, wait, hold, speed)
                if set(statuses[part]) != {OK}:
                    break
                continue
            statuses[part] = self._copy(hashes, rows, part, place, Wait.BEST_EFFORT, hold)
            if wait is Wait.ALL and not _LATER.isdisjoint(statuses[part]):
                if PENDING in statuses[part]:
                    self._prefetch_part(hashes, place, part.stop)
                self._copy_as_it_comes(hashes, rows, part, place, statuses)
            if OK not in statuses[part]:
                break
        return statuses

    def _copy_as_it_comes(
        self, hashes: Sequence[bytes], rows: Rows, part: slice, place: Place, statuses: list[int]
    ) -> None:
        """Copies the beginning of a part while the agent still reads the rest of it.

        What found no room at first, in HOST or in what one worker may lease, may find it when the
        beginning has been copied.
        """
        late = next(i for i, status in enumerate(statuses[part], part.start) if status in _LATER)
        for piece in self._parts(late, part.stop, place, _PIECE_BYTES):
            if not _LATER.isdisjoint(statuses[piece]):
                statuses[piece] = self._copy(hashes, rows, piece, place, Wait.ALL)

    def _prefetch_part(self, hashes: Sequence[bytes], place: Place, start: int) -> None:
        """The slower tier goes on with the next part while this one is copied."""
        count = max(1, _PART_BYTES // self._block_bytes(place))
        if start < len(hashes):
            with suppress(OverloadedError):  # others come first: the load itself brings it
                self.prefetch(hashes[start : start + count], place=_shifted(place, hashes, start))

    def _copy(
        self,
        hashes: Sequence[bytes],
        rows: Rows,
        part: slice,
        place: Place,
        wait: Wait,
        hold_id: int = 0,
        compute_seconds_per_block: float = 0.0,
    ) -> list[int]:
        with self._client.attached() as connection:
            token = self._session(connection)
            slots, lease = self._lease(
                connection,
                token,
                hashes[part],
                _shifted(place, hashes, part.start),
                hold_id,
                _COPY_TTL_SECONDS,
                wait,
                compute_seconds_per_block,
            )
            copy_out(slots, rows[part])
            connection.release_later(token, lease.lease_id)
        return slots.statuses

    def store(
        self,
        hashes: Sequence[bytes],
        blocks: Any,
        *,
        place: Place = START,
        breakpoints: Collection[int] = (),
    ) -> list[int]:
        """Copies blocks in, as `load_into` copies out; one BlockStatus per key.

        OK was stored, PRESENT was there already, REFUSED found no room. What follows a refused
        block is not stored. What is more than this worker may reserve at one time is stored in
        several parts. `breakpoints` are as of `reserve`.
        """
        _check_breakpoints(breakpoints, hashes)
        rows = self._rows(blocks, hashes, place)
        if (streamed := self._by_stream(storing(self.spec, hashes, rows, place))) is not None:
            return streamed
        statuses = [int(BlockStatus.REFUSED)] * len(hashes)
        step, done = max(1, _PART_BYTES // self._block_bytes(place)), 0
        while done < len(hashes):
            part = slice(done, min(done + step, len(hashes)))
            with self.reserve(
                hashes[part],
                place=_shifted(place, hashes, part.start),
                breakpoints=[
                    each - part.start for each in breakpoints if part.start <= each < part.stop
                ],
            ) as reservation:
                reservation.write(rows[part])
                statuses[part] = reservation.commit()
            stored = sum(1 for _ in takewhile(_STORED.__contains__, statuses[part]))
            if not stored:  # else the slots of this part may be those that the rest needs
                break
            done += stored
        return statuses

    def reserve(
        self,
        hashes: Sequence[bytes],
        *,
        place: Place = START,
        ttl_seconds: float = 0.0,
        breakpoints: Collection[int] = (),
    ) -> Reservation:
        """Slots for the blocks that are not cached yet, to be written in place.

        `breakpoints` are indexes of hashes whose blocks end a part that many sequences share, as a
        system prompt or a document: worth more to the agent than what follows. Without shared
        memory the slots are this process's own, and are sent at the commit; breakpoints are not.
        """
        _check_breakpoints(breakpoints, hashes)
        private = private_reserve(self.spec, hashes, place, self._run)
        if (reservation := self._by_stream(private)) is not None:
            return reservation
        with self._client.attached() as connection:
            token = self._session(connection)
            with connection.releases(token) as ended:
                request = pb.ReserveBlocksRequest(
                    keys=[_keys(hashes, place)],
                    release=ended,
                    ttl=_duration(ttl_seconds),
                    breakpoints=breakpoints,
                )
                answer = connection.call(
                    "ReserveBlocks", token, request, self._client.timeout_seconds
                )
            grantor = _Grantor(self._client, connection, token, answer.reservation.lease_id)
            try:
                slots = self._granted(connection, token, answer, place)
            except BaseException:
                grantor.give_back()
                raise
        return Reservation(slots, _seconds(answer.reservation.ttl), grantor)

    def prefetch(self, hashes: Sequence[bytes], *, place: Place = START) -> int:
        """Asks for a prefix to be in HOST; how many leading blocks are, or will be."""
        answer = self._call("PrefetchPrefix", pb.PrefetchPrefixRequest(keys=_keys(hashes, place)))
        accepted: int = answer.accepted_count
        return accepted

    def touch(self, hashes: Sequence[bytes], *, place: Place = START) -> None:
        """Says that blocks were used which the engine had itself."""
        self._call("TouchBlocks", pb.TouchBlocksRequest(keys=_keys(hashes, place)))

    def renew(self, ttl_seconds: float = 0.0) -> int:
        """Extends every lease and reservation of this worker in the namespace; how many live."""
        request = pb.RenewLeasesRequest(ttl=_duration(ttl_seconds))
        return len(self._call("RenewLeases", request).leases)

    def _call(self, method: str, request: Any) -> Any:
        with self._client.connected() as connection:
            if isinstance(connection, StreamConnection):
                return connection.run(self.spec, asking(method, request))
            token = self._session(connection)
            return connection.call(method, token, request, self._client.timeout_seconds)

    def _run(self, steps: Steps[list[int]]) -> list[int]:
        """What they come to, at the commit of what was reserved without shared memory."""
        if (done := self._by_stream(steps)) is None:
            raise AgentUnavailableError("the client's connection is another one now")
        return done

    def _by_stream(self, steps: Steps[T]) -> T | None:
        """What they come to; None, and nothing done, where there is shared memory."""
        with self._client.connected() as connection:
            if isinstance(connection, StreamConnection):
                return connection.run(self.spec, steps)
        return None

    def _session(self, connection: Connection) -> bytes:
        return connection.session(self.spec, self._client.worker, self._client.timeout_seconds)

    def _lease(
        self,
        connection: Connection,
        token: bytes,
        hashes: Sequence[bytes],
        place: Place,
        hold_id: int,
        ttl_seconds: float,
        wait: Wait,
        compute_seconds_per_block: float,
        lease_count: int = 0,
    ) -> tuple[GrantedSlots, block_pb2.Lease]:
        request = pb.LoadBlocksRequest(
            keys=[_keys(hashes, place)],
            wait=wait.name,
            compute_seconds_per_block=compute_seconds_per_block,
            lease_count=lease_count,
            hold_id=hold_id,
            ttl=_duration(ttl_seconds),
        )
        try:
            return self._load_blocks(connection, token, request, place)
        except UnreadableDeviceError as error:
            log.warning("kvtier: blocks are loaded from HOST, not from the device: %s", error)
            connection.reads_device = False
            return self._load_blocks(connection, token, request, place)

    def _load_blocks(
        self, connection: Connection, token: bytes, request: pb.LoadBlocksRequest, place: Place
    ) -> tuple[GrantedSlots, block_pb2.Lease]:
        with connection.releases(token) as ended:
            request.release[:] = ended
            request.accept_device_slots = connection.reads_device
            answer = connection.call("LoadBlocks", token, request, self._client.timeout_seconds)
        try:
            return self._granted(connection, token, answer, place), answer.lease
        except UnreadableDeviceError:
            connection.release_later(token, answer.lease.lease_id)
            raise

    def _granted(
        self, connection: Connection, token: bytes, answer: Any, place: Place
    ) -> GrantedSlots:
        return connection.slots(
            token,
            answer.status,
            answer.slots,
            self._block_bytes(place),
            self._client.timeout_seconds,
        )

    def _rows(self, blocks: Any, hashes: Sequence[bytes], place: Place) -> Rows:
        device = self._client.device if self._client.has_memory else None
        on = device.device if device is not None else None
        return rows_of(blocks, len(hashes), self._block_bytes(place), on)

    def _block_bytes(self, place: Place) -> int:
        return block_bytes_of(self.spec, place)

    def _parts(self, start: int, stop: int, place: Place, part_bytes: int) -> list[slice]:
        step = max(1, part_bytes // self._block_bytes(place))
        return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


class _Grantor:
    """Commits or gives back one reservation; until then it is being written."""

    def __init__(
        self, client: Client, connection: Connection, token: bytes, reservation_id: int
    ) -> None:
        self._client = client
        self._connection = connection
        self._token = token
        self._reservation_id = reservation_id
        self._committed = False
        connection.start_writing(self)

    def commit(self, indexes: list[int]) -> list[int]:
        request = pb.CommitBlocksRequest(reservation_id=self._reservation_id, indexes=indexes)
        with self._client.attached(self._connection) as connection:
            answer = connection.call(
                "CommitBlocks", self._token, request, self._client.timeout_seconds
            )
        statuses: list[int] = list(answer.status)
        self._committed = EXPIRED not in statuses
        return statuses

    def give_back(self) -> None:
        self._connection.end_writing(self)
        if self._reservation_id and not self._committed:
            request = pb.ReleaseLeasesRequest(lease_ids=[self._reservation_id])
            with suppress(KvtierError), self._client.attached(self._connection) as connection:
                connection.call("ReleaseLeases", self._token, request, self._client.timeout_seconds)


def _check_breakpoints(breakpoints: Collection[int], hashes: Sequence[bytes]) -> None:
    if wrong := [each for each in breakpoints if not 0 <= each < len(hashes)]:
        raise InvalidRequestError(
            f"breakpoints: {wrong[0]} is no index of the {len(hashes)} hashes"
        )

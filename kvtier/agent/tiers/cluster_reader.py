"""Finding blocks in the cluster, and bringing them to HOST."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvtier.agent.moving.flight import Fetch, Flight
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.moving.storage_mover import Kind, StorageMover
from kvtier.agent.moving.writer import spawn
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.tiers.existence import Existence
from kvtier.agent.tiers.tenures import Tenure, Tenures
from kvtier.core.block import BlockKey, Lane, Tier
from kvtier.tiers.arena import cell_of
from kvtier.tiers.cluster.blocks import FetchedBlock, Wanted
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.sealing import Fault, SealError
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.size_class import Counters

log = logging.getLogger(__name__)

#: What one thread fetches and verifies at a time, while others fetch on.
_READ_BYTES = 8 << 20
_MOST_BLOCKS = 128
#: Of a prefetch: a load that comes while it is read waits for it.
_AHEAD_BYTES = 2 << 20
#: So many blocks of a prefix are asked for before the rest of it.
_FIRST_ASKED = 512
#: Values that can be of use to nobody: they make way for good ones.
_USELESS = (Fault.DAMAGED, Fault.FORGED)


@dataclass(frozen=True, slots=True)
class _Claim:
    """An origin in the cluster, which keeps what it likes."""

    tenure: Tenure

    @property
    def is_current(self) -> bool:
        return self.tenure.is_current

    def drop(self) -> None:
        """Nothing is kept for it there."""


class ClusterReader:
    """CLUSTER as a source of promotion. `asking` answers small questions, `moving` moves blocks.

    `agreed` is awaited before a namespace's blocks are asked for.
    """

    tier = Tier.CLUSTER
    is_remote = True

    def __init__(
        self,
        tenures: Tenures,
        existence: Existence,
        asking: StorageMover[ClusterStorage],
        moving: StorageMover[ClusterStorage],
        *,
        agreed: Callable[[Tenure], Awaitable[None]],
        lookup_seconds: float,
    ) -> None:
        self._tenures = tenures
        self._existence = existence
        self._asking = asking
        self._moving = moving
        self._storage = moving.storage
        self._agreed = agreed
        self._lookup_seconds = lookup_seconds
        self._counters: defaultdict[tuple[int, int], Counters] = defaultdict(Counters)
        self._removing: set[asyncio.Task[None]] = set()
        #: Is told of values that are of no use, by namespace id.
        self.on_damaged: Callable[[int, Lane, bytes], None] = lambda *_: None
        #: Values that were not what their names promise.
        self.faults: Counter[Fault] = Counter()

    def counters(self, namespace: Namespace, group: int) -> Counters:
        return self._counters[namespace.namespace_id, group]

    @property
    def _is_up(self) -> bool:
        return self._asking.is_readable and self._moving.is_readable

    # Finding.

    async def learn(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], *, is_prefix: bool
    ) -> None:
        tenure = self._tenures.of(namespace)
        if not self._is_up:
            return
        place = (namespace.namespace_id, lane)
        known = self._existence.known(place, hashes)
        if is_prefix and False in known:
            hashes = hashes[: known.index(False)]
        unknown = [each for each, is_there in zip(hashes, known, strict=False) if is_there is None]
        first = unknown[:_FIRST_ASKED] if is_prefix else unknown
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._lookup_seconds):
                await self._agreed(tenure)
                await self._ask(tenure, lane, first)
                rest = unknown[len(first) :]
                if rest and all(self._existence.known(place, first)):
                    await self._ask(tenure, lane, rest)

    async def _ask(self, tenure: Tenure, lane: Lane, hashes: Sequence[bytes]) -> None:
        storage = self._storage

        def exist() -> list[bool | None]:
            return storage.blocks.exist(tenure.identity, lane, hashes, storage.deadline())

        def heard(answers: list[bool | None] | None) -> None:
            if answers is None or not tenure.is_current:
                return
            for is_there in (True, False):
                each = [h for h, answer in zip(hashes, answers, strict=True) if answer is is_there]
                self._existence.note((tenure.namespace_id, lane), each, is_there=is_there)

        if hashes:
            await self._asking.run(exist, kind=Kind.READ, on_end=heard)

    def has(self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes]) -> list[bool]:
        if not self._is_up:
            return [False] * len(hashes)
        known = self._existence.known((namespace.namespace_id, lane), hashes)
        return [is_there is True for is_there in known]

    # Bringing.

    def claim(self, namespace: Namespace, lane: Lane, block_hash: bytes) -> _Claim | None:
        [is_there] = self.has(namespace, lane, [block_hash])
        return _Claim(self._tenures.of(namespace)) if is_there else None

    def read(
        self, promotion: Promotion, flights: Sequence[Flight]
    ) -> Iterable[Coroutine[Any, Any, None]]:
        by_tenure: defaultdict[Tenure, list[Flight]] = defaultdict(list)
        for flight in flights:
            by_tenure[_tenure(flight)].append(flight)
        for tenure, each in by_tenure.items():
            step = self._step(each[0].host.slot_bytes, each[0].kind)
            for first in range(0, len(each), step):
                yield self._read(promotion, tenure, Fetch(each[first : first + step]))

    async def _read(self, promotion: Promotion, tenure: Tenure, reading: Fetch) -> None:
        flights, lengths, storage = reading.flights, tenure.block_bytes, self._storage
        wanted = [
            Wanted(
                flight.lane,
                flight.block_hash,
                cell_of(flight.host.table, flight.slot),
                lengths[flight.lane.group],
            )
            for flight in flights
        ]

        is_mortal = flights[0].host.lifetimes.ttl_seconds is not None
        remaining: list[float | None] = []

        def fetch() -> list[FetchedBlock]:
            if is_mortal:  # before the values, which may be replaced by longer-lived ones
                remaining.extend(
                    storage.blocks.remaining_seconds(tenure.identity, wanted, storage.deadline())
                )
            return storage.blocks.fetch(tenure.identity, wanted, storage.deadline())

        try:
            await self._moving.run(
                fetch,
                size_bytes=sum(each.length for each in wanted),
                ticket=reading.ticket,
                on_end=lambda results: self._landed(promotion, tenure, flights, results, remaining),
            )
        except OSError:
            for flight in flights:
                promotion.give_up(flight)

    def _landed(
        self,
        promotion: Promotion,
        tenure: Tenure,
        flights: Sequence[Flight],
        results: list[FetchedBlock] | None,
        remaining: Sequence[float | None],
    ) -> None:
        if results is not None and remaining:
            results = _aged(flights, results, remaining)
        for flight, result in zip(flights, results or [None] * len(flights), strict=True):
            promotion.land(flight, result if isinstance(result, BlockKey) else None)
        if results is None or not tenure.is_current:
            return
        for flight, result in zip(flights, results, strict=True):
            if result is None or isinstance(result, SealError):
                place = (tenure.namespace_id, flight.lane)
                self._existence.note(
                    place,
                    [flight.block_hash],
                    is_there=False,
                    is_refused=isinstance(result, SealError) and result.fault not in _USELESS,
                )
            if isinstance(result, SealError):
                self._refuse(tenure, flight, result)
        down = next((each for each in results if isinstance(each, ClusterDownError)), None)
        if down is not None and not any(isinstance(each, BlockKey) for each in results):
            self._moving.note_error(down, is_read=True)

    def _refuse(self, tenure: Tenure, flight: Flight, error: SealError) -> None:
        self.faults[error.fault] += 1
        log.warning(
            "CLUSTER: block %s of %s is refused: %s", flight.block_hash.hex(), tenure.label, error
        )
        if error.fault in _USELESS:
            self.on_damaged(tenure.namespace_id, flight.lane, flight.block_hash)
            spawn(self._remove(tenure, flight.lane, flight.block_hash), self._removing)

    async def _remove(self, tenure: Tenure, lane: Lane, block_hash: bytes) -> None:
        storage = self._storage
        with suppress(OSError):  # it is refused again
            await self._moving.run(
                lambda: storage.blocks.delete(
                    tenure.identity, lane, [block_hash], storage.deadline()
                )
            )

    def _step(self, slot_bytes: int, kind: Kind = Kind.READ) -> int:
        """How many blocks one call fetches."""
        most_bytes = _AHEAD_BYTES if kind is Kind.PREFETCH else _READ_BYTES
        piece_bytes = self._moving.forecast.piece_bytes(most_bytes)
        return max(1, min(_MOST_BLOCKS, piece_bytes // slot_bytes))

    def expect(self, namespace: Namespace) -> _ClusterExpectation:
        return _ClusterExpectation(namespace, self._moving, self._step)

    def first_blocks(self, namespace: Namespace, lane: Lane) -> int:
        return self._step(namespace.groups[lane.group].slot_bytes) * self._moving.forecast.depth

    def seconds_until_learned(self) -> float:
        return self._asking.forecast.seconds_until_read(0)

    @property
    def measured_at(self) -> float:
        return self._moving.forecast.measured_at

    def seconds_until_landed(self) -> float:
        return self._moving.forecast.seconds_until_read(self._moving.prefetch_bytes)

    async def close(self) -> None:
        for task in self._removing:
            task.cancel()
        await asyncio.gather(*self._removing, return_exceptions=True)


def _aged(
    flights: Sequence[Flight],
    results: Sequence[FetchedBlock],
    remaining: Sequence[float | None],
) -> list[FetchedBlock]:
    """Lets blocks live on for as long as in the cluster; one without an end is not believed."""
    aged: list[FetchedBlock] = []
    for flight, result, seconds in zip(flights, results, remaining, strict=True):
        if isinstance(result, BlockKey):
            result = None if seconds is None else result
            flight.stored_at = flight.host.lifetimes.stored_at_with(seconds or 0.0)
        aged.append(result)
    return aged


class _ClusterExpectation:
    def __init__(
        self,
        namespace: Namespace,
        moving: StorageMover[ClusterStorage],
        step: Callable[[int], int],
    ) -> None:
        self._namespace = namespace
        self._moving = moving
        self._step = step
        self._size_bytes = self._calls = 0

    def add(self, lane: Lane, hashes: Sequence[bytes]) -> float:
        step = self._step(self._namespace.groups[lane.group].slot_bytes)
        self._size_bytes += len(hashes) * self._namespace.spec.block_bytes[lane.group]
        self._calls += -(-len(hashes) // step)
        return self._moving.forecast.seconds_until_read(self._size_bytes, self._calls)


def _tenure(flight: Flight) -> Tenure:
    assert isinstance(flight.origin, _Claim)
    return flight.origin.tenure

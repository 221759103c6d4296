"""CLUSTER at work: its parts, put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from kvtier.agent.moving.demotion import Demotion, WritePolicy
from kvtier.agent.moving.storage_mover import StorageMover
from kvtier.agent.moving.writer import spawn
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.tiers.cluster_reader import ClusterReader
from kvtier.agent.tiers.cluster_writer import ClusterWriter
from kvtier.agent.tiers.existence import Existence
from kvtier.agent.tiers.tenures import Tenure, Tenures
from kvtier.core.block import Lane
from kvtier.core.namespace import identity_digest, namespace_digest
from kvtier.errors import KvtierError
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.tiers.cluster.report import ClusterReport, Concern
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.host import HostTier

log = logging.getLogger(__name__)

#: Threads for small questions, which never wait behind blocks.
_ASKING_THREADS = 2
_PROBE_SECONDS = 1.0
_STOP_SECONDS = 2.0
_SCAN_SECONDS = 60.0
_BATCH = 4096
#: Another node may write an older one at the same moment.
_PUBLISH_ATTEMPTS = 5


@dataclass(frozen=True)
class ClusterOptions:
    """Times in seconds, sizes in bytes."""

    write_policy: WritePolicy = WritePolicy.THROUGH
    after_hits: int = 2
    connections: int = 2
    timeout_seconds: float = 1.0
    lookup_seconds: float = 0.1
    max_in_flight_bytes: int = 64 << 20
    hit_seconds: float = 30.0
    miss_seconds: float = 1.0
    heartbeat_seconds: float = 2.0


class Cluster:
    """Lookup, promotion, demotion and the heartbeat, by which nodes know each other.

    `describe` is what this node says of itself. `on_generation` is awaited when another node has
    invalidated a namespace.
    """

    def __init__(
        self,
        storage: ClusterStorage,
        options: ClusterOptions,
        host: HostTier,
        *,
        codec_of: Callable[[str], Codec],
        describe: Callable[[], NodeRecord],
    ) -> None:
        self.storage = storage
        self.options = options
        self.report: ClusterReport | None = None
        self.on_generation: Callable[[Namespace, bytes], Awaitable[object]]
        self._describe = describe
        self.asking, self.moving = (
            StorageMover(
                storage,
                name=name,
                depth=depth,
                timeout_seconds=2 * options.timeout_seconds,
                probe_seconds=_PROBE_SECONDS,
            )
            for name, depth in (
                ("cluster-ask", _ASKING_THREADS),
                ("cluster", options.connections),
            )
        )
        self.tenures = Tenures()
        self.existence = Existence(
            time.monotonic, hit_seconds=options.hit_seconds, miss_seconds=options.miss_seconds
        )
        self.reader = ClusterReader(
            self.tenures,
            self.existence,
            self.asking,
            self.moving,
            agreed=self._agreed,
            lookup_seconds=options.lookup_seconds,
        )
        self.writer = ClusterWriter(
            self.tenures,
            self.existence,
            self.asking,
            self.moving,
            agreed=self._agreed,
            codec_of=codec_of,
        )
        self.demotion = Demotion(
            host,
            self.writer,
            policy=options.write_policy,
            after_hits=options.after_hits,
            max_in_flight_bytes=options.max_in_flight_bytes,
        )
        for mover in (self.asking, self.moving):
            mover.on_turn = self._turned
        self._namespaces: dict[int, Namespace] = {}
        self._told: set[Concern] = set()
        self._is_due = asyncio.Event()
        self._beaten = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()
        self._followed: set[Namespace] = set()

    @property
    def is_up(self) -> bool:
        return self.asking.is_readable and self.moving.is_readable

    def _turned(self) -> None:
        if not self.is_up:
            self.existence.clear()  # what comes back may be another server, or empty
        self.demotion.tier_turned()
        self._is_due.set()

    # Start and stop.

    def watch(self, namespaces: Namespaces) -> None:
        """Before there are any."""
        namespaces.on_added.append(self.register)
        namespaces.on_dropped.append(self.forget)

    def start(self) -> None:
        """Connects in the background; the agent serves meanwhile."""
        self.demotion.open()
        self._heart = asyncio.get_running_loop().create_task(self._beat_on())

    async def flush(self) -> int:
        """Returns when every block that HOST has now is there: bytes written. Raises OSError."""
        self.existence.clear()  # the servers may have dropped what they had
        return await self.demotion.flush()

    async def stop(self) -> None:
        """Writes what is waiting, within two seconds, says goodbye, and closes everything."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self.demotion.flush()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, *self._following, return_exceptions=True)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                node_id = self._describe().node_id
                await self.asking.run(
                    lambda: self.storage.registry.withdraw(node_id, self.storage.deadline())
                )
        await self.demotion.close()
        await self.writer.close()
        await self.reader.close()
        self.storage.close()  # ends calls that hang
        await self.asking.close()
        await self.moving.close()

    # Namespaces and their generations.

    def register(self, namespace: Namespace) -> None:
        """Nothing of it is read or written before the nodes agree on its generation."""
        self._namespaces[namespace.namespace_id] = namespace
        self.tenures.begin(namespace)
        self._is_due.set()

    def forget(self, namespace: Namespace) -> None:
        """It made way for another."""
        del self._namespaces[namespace.namespace_id]
        self.tenures.end(namespace)
        self.existence.forget(namespace.namespace_id)

    def renew(self, namespace: Namespace) -> None:
        """It has a new generation, or something of it is evicted: what is on its way is not wanted,
        and what was heard does not count."""
        if namespace.namespace_id in self._namespaces:
            self.tenures.begin(namespace)
            self.existence.forget(namespace.namespace_id)
            self._is_due.set()

    def suspend(self, namespace: Namespace) -> None:
        """Until `renew`."""
        self.tenures.suspend(namespace)
        self.existence.forget(namespace.namespace_id)

    async def publish(self, namespaces: Iterable[Namespace]) -> None:
        """Returns when other nodes can hear of these generations. Raises OSError."""
        waiting = list(namespaces)
        for _ in range(_PUBLISH_ATTEMPTS):
            there = await self._beat(waiting)
            waiting = [
                each
                for each in waiting
                if there.get(namespace_digest(each.spec), b"") < each.generation_id
            ]
            if not waiting:
                return
        raise OSError("it does not take the new generation")

    async def _agreed(self, tenure: Tenure) -> None:
        """Returns when the nodes agree on a generation. Raises OSError."""
        async with asyncio.timeout(2 * self.options.timeout_seconds):
            while not tenure.is_agreed:
                if not tenure.is_current:
                    raise OSError(f"{tenure.label} has another generation now")
                await self._beaten.wait()

    # The heartbeat.

    async def _beat_on(self) -> None:
        while True:
            self._is_due.clear()
            try:
                await self._beat()
            except OSError:
                pass  # the movers' health says so
            except Exception:
                log.exception("CLUSTER: a heartbeat failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.heartbeat_seconds):
                    await self._is_due.wait()

    async def _beat(self, more: Iterable[Namespace] = ()) -> dict[bytes, bytes]:
        """Says what this node is, hears what the others have invalidated: the generations that are
        there, by the digests of namespaces. `more` may have made way for others meanwhile."""
        known = {each.namespace_id: each for each in more} | self._namespaces
        own = {namespace_digest(each.spec): each.generation_id for each in known.values()}
        there, refusal = await self.asking.run(self._exchange, self._describe(), own)
        if refusal is not None:
            self.asking.note_error(refusal, is_read=False)
        for namespace_id, namespace in known.items():
            generation_id = there.get(namespace_digest(namespace.spec))
            tenure = self.tenures.of_id(namespace_id)
            if generation_id is None or tenure is None or not tenure.is_current:
                continue
            if generation_id > namespace.generation_id:
                self._begin_to_follow(namespace, generation_id)
            elif generation_id == tenure.generation_id:
                tenure.is_agreed = True
        beaten, self._beaten = self._beaten, asyncio.Event()
        beaten.set()
        return there

    def _begin_to_follow(self, namespace: Namespace, generation_id: bytes) -> None:
        """One at a time: it may wait for DISK, and the next heartbeat hears of it again."""
        if namespace not in self._followed:
            log.info("%s was invalidated by another node", namespace.label)
            self._followed.add(namespace)
            spawn(self._follow(namespace, generation_id), self._following)

    async def _follow(self, namespace: Namespace, generation_id: bytes) -> None:
        try:
            with suppress(KvtierError):  # it has been logged, and is evicted at least
                await self.on_generation(namespace, generation_id)
        finally:
            self._followed.discard(namespace)

    def _exchange(
        self, record: NodeRecord, own: Mapping[bytes, bytes]
    ) -> tuple[dict[bytes, bytes], ClusterDownError | None]:
        """What the others say, and why they do not hear of this node. Called by a mover."""
        storage, refusal = self.storage, None
        deadline = storage.deadline()
        there = storage.registry.exchange_generations(own, deadline)
        try:  # a server that takes nothing, or does not tell everything, still has blocks
            storage.registry.announce(record, deadline)
            self.report = storage.store.check(deadline)
        except ClusterDownError as error:
            refusal = error
        else:
            for concern in set(self.report.concerns) - self._told:
                log.warning("%s: %s", storage.label, concern.value)
            self._told = set(self.report.concerns)
        return there, refusal

    async def nodes(self) -> list[NodeRecord]:
        """Those that are alive. Raises OSError."""
        return await self.asking.run(lambda: self.storage.registry.nodes(self.storage.deadline()))

    # Removing.

    async def remove(
        self, namespace: Namespace, blocks: Iterable[tuple[Lane, bytes]] | None
    ) -> int:
        """Deletes blocks of the current generation, or all; how many there were. Raises OSError.

        To be called before they are evicted here: what was found while the servers still had it,
        and is on its way here, is not wanted then.
        """
        try:
            return await self._delete(self.tenures.of(namespace).identity, blocks)
        finally:
            self.renew(namespace)

    async def remove_generation(self, namespace: Namespace, generation_id: bytes) -> int:
        """Deletes what nobody finds any more, when it is evicted here. Raises OSError."""
        return await self._delete(identity_digest(namespace.spec, generation_id), None)

    async def count(self, namespace: Namespace, blocks: Iterable[tuple[Lane, bytes]] | None) -> int:
        """About how many `remove` would delete. Raises OSError."""
        storage = self.storage

        def found(identity: bytes, lane: Lane, hashes: list[bytes]) -> int:
            return sum(map(bool, storage.blocks.exist(identity, lane, hashes, storage.deadline())))

        identity = self.tenures.of(namespace).identity
        return await self._sum(identity, blocks, storage.blocks.count_all, found)

    async def _delete(self, identity: bytes, blocks: Iterable[tuple[Lane, bytes]] | None) -> int:
        storage = self.storage

        def delete(identity: bytes, lane: Lane, hashes: list[bytes]) -> int:
            return storage.blocks.delete(identity, lane, hashes, storage.deadline())

        return await self._sum(identity, blocks, storage.blocks.delete_all, delete)

    async def _sum(
        self,
        identity: bytes,
        blocks: Iterable[tuple[Lane, bytes]] | None,
        of_all: Callable[[bytes, float], int],
        of_some: Callable[[bytes, Lane, list[bytes]], int],
    ) -> int:
        """What is done in a thread, to all blocks or to batches of some. Raises OSError, at the
        latest when the cluster is known to be down."""
        if not self.is_up:
            raise OSError(self.moving.reason or self.asking.reason)
        by_lane: defaultdict[Lane, list[bytes]] = defaultdict(list)
        for lane, block_hash in blocks or ():
            by_lane[lane].append(block_hash)

        def run() -> int:
            if blocks is None:
                return of_all(identity, time.monotonic() + _SCAN_SECONDS)
            return sum(
                of_some(identity, lane, hashes[i : i + _BATCH])
                for lane, hashes in by_lane.items()
                for i in range(0, len(hashes), _BATCH)
            )

        # Not a mover's: it may take longer than a call that is not to be given up.
        work = asyncio.ensure_future(asyncio.to_thread(run))
        work.add_done_callback(lambda work: work.cancelled() or work.exception())
        while not work.done():
            await asyncio.wait([work], timeout=self.options.timeout_seconds)
            if not self.is_up and not work.done():
                raise OSError(self.moving.reason or self.asking.reason)
        try:
            return work.result()
        except OSError as error:
            self.asking.note_error(error, is_read=False)
            raise

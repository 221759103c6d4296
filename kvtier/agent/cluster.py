"""CLUSTER at work: its parts, put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from kvtier.agent.cluster_reader import ClusterReader
from kvtier.agent.cluster_writer import ClusterWriter
from kvtier.agent.demotion import Demotion, WritePolicy
from kvtier.agent.existence import Existence
from kvtier.agent.namespaces import Namespace, Namespaces
from kvtier.agent.storage_mover import StorageMover
from kvtier.agent.tenures import Tenure, Tenures
from kvtier.core.block import Lane
from kvtier.core.namespace import identity_digest, namespace_digest
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.tiers.cluster.report import ClusterReport, Concern
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.host import HostTier

log = logging.getLogger(__name__)

#: Threads for small questions, which never wait behind blocks.
_ASKING_THREADS = 2
_PROBE_SECONDS = 1.0
_STOP_SECONDS = 2.0
_DELETE_SECONDS = 60.0


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
        self.on_generation: Callable[[Namespace, bytes], Awaitable[None]]
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

    @property
    def is_up(self) -> bool:
        return self.asking.is_readable and self.moving.is_readable

    def _turned(self) -> None:
        self.existence.clear()  # a server that comes back may be another, or empty
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

    async def stop(self) -> None:
        """Writes what is waiting, within two seconds, says goodbye, and closes everything."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self.demotion.flush()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
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
        self.tenures.begin(namespace)
        self.existence.forget(namespace.namespace_id)
        self._is_due.set()

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
            with suppress(OSError):  # the movers' health says so
                await self._beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.heartbeat_seconds):
                    await self._is_due.wait()

    async def _beat(self) -> None:
        """Says what this node is, hears what the others have invalidated."""
        known = dict(self._namespaces)
        own = {namespace_digest(each.spec): each.generation_id for each in known.values()}
        youngest = await self.asking.run(self._exchange, self._describe(), own)
        for namespace_id, namespace in known.items():
            generation_id = youngest.get(namespace_digest(namespace.spec))
            if generation_id is None or namespace_id not in self._namespaces:
                continue
            if generation_id > namespace.generation_id:
                log.info("%s was invalidated by another node", namespace.label)
                await self.on_generation(namespace, generation_id)
            tenure = self.tenures.of_id(namespace_id)
            if tenure is not None and tenure.generation_id == generation_id:
                tenure.is_agreed = True
        beaten, self._beaten = self._beaten, asyncio.Event()
        beaten.set()

    def _exchange(self, record: NodeRecord, own: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Called by a mover."""
        self.report = self.storage.store.check(self.storage.deadline())
        for concern in set(self.report.concerns) - self._told:
            log.warning("%s: %s", self.storage.label, concern.value)
        self._told = set(self.report.concerns)
        registry = self.storage.registry
        registry.announce(record, self.storage.deadline())
        return registry.exchange_generations(own, self.storage.deadline())

    async def nodes(self) -> list[NodeRecord]:
        """Those that are alive. Raises OSError."""
        return await self.asking.run(lambda: self.storage.registry.nodes(self.storage.deadline()))

    # Removing.

    async def remove(
        self, namespace: Namespace, blocks: Iterable[tuple[Lane, bytes]] | None
    ) -> int:
        """Deletes blocks of the current generation, or all; how many there were. Raises OSError.

        To be called before they are evicted here: what was on its way here is not wanted then.
        """
        identity = self.tenures.of(namespace).identity
        self.renew(namespace)
        return await self._delete(identity, blocks)

    async def remove_generation(self, namespace: Namespace, generation_id: bytes) -> int:
        """Deletes what nobody finds any more. Raises OSError."""
        return await self._delete(identity_digest(namespace.spec, generation_id), None)

    async def _delete(self, identity: bytes, blocks: Iterable[tuple[Lane, bytes]] | None) -> int:
        blocks_of, deadline = self.storage.blocks, time.monotonic() + _DELETE_SECONDS

        def delete() -> int:
            if blocks is None:
                return blocks_of.delete_all(identity, deadline)
            by_lane: dict[Lane, list[bytes]] = {}
            for lane, block_hash in blocks:
                by_lane.setdefault(lane, []).append(block_hash)
            return sum(
                blocks_of.delete(identity, lane, hashes, deadline)
                for lane, hashes in by_lane.items()
            )

        if not self.is_up:
            raise OSError(self.moving.reason or self.asking.reason)
        # Not a mover's: it may take longer than a call that is not to be given up.
        return await asyncio.to_thread(delete)

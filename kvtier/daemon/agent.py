"""Puts the parts of an agent together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Coroutine
from functools import partial
from importlib.metadata import version
from typing import Any

from kvtier import memory
from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.operating.explaining import Explaining
from kvtier.agent.operating.recording import Recorder
from kvtier.agent.operating.resizing import Resizing
from kvtier.agent.operating.seen_requests import SeenRequests
from kvtier.agent.operating.upkeep import Upkeep
from kvtier.agent.operating.warming import Warming
from kvtier.agent.placing.expiry import Expiry
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.admission import Admission, AdmissionLimits, Work
from kvtier.agent.serving.events import Events
from kvtier.agent.serving.loading import Loading
from kvtier.agent.serving.pins import Pins
from kvtier.agent.serving.prefetching import Prefetching
from kvtier.agent.serving.reading import Reading
from kvtier.agent.serving.storing import Storing
from kvtier.agent.serving.writing import Writing
from kvtier.agent.sessions.attach import AttachServer
from kvtier.agent.sessions.grants import Grants
from kvtier.agent.sessions.namespaces import LayoutConflict, Namespaces
from kvtier.agent.sessions.sessions import Sessions
from kvtier.agent.sessions.stream_sessions import StreamSessions
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.agent.tiers.gpu import Gpu, OpenAccelerator
from kvtier.config import AgentConfig
from kvtier.core.block import Tier
from kvtier.core.lease import LeaseTable
from kvtier.daemon.cluster import (
    embedded_directory,
    is_embedded,
    node_name,
)
from kvtier.daemon.events import EventsOffer
from kvtier.daemon.listening import Listening, Offer
from kvtier.daemon.metrics import metrics_endpoint
from kvtier.daemon.settings import (
    access_rules,
    admission_limits,
    device_options,
    lease_limits,
    namespace_rules,
    pin_limits,
    prefetch_options,
    stream_access,
    warming_options,
)
from kvtier.daemon.sizing import auto_sizing
from kvtier.daemon.socket_directory import SocketDirectory
from kvtier.daemon.tiers import new_cluster, new_disk, new_history, new_host
from kvtier.rpc.block_cache import BlockCacheService, Identity
from kvtier.rpc.block_streams import BlockStreams
from kvtier.rpc.cache_admin import CacheAdminService
from kvtier.rpc.cache_inspection import CacheInspectionService
from kvtier.rpc.cache_listing import CacheListingService
from kvtier.rpc.call_counts import CallCounts
from kvtier.rpc.direct import DirectCalls
from kvtier.rpc.server import MAX_CONNECTIONS, Server
from kvtier.sockets import ADMIN_SOCKET, ATTACH_SOCKET, WORKER_SOCKET
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.nodes import NodeNamespace, NodeRecord, NodeTier
from kvtier.tiers.disk.io import BlockIO
from kvtier.v1 import block_cache_pb2, cache_admin_pb2

log = logging.getLogger(__name__)

_BLOCK_CACHE = block_cache_pb2.DESCRIPTOR.services_by_name["BlockCache"]
_CACHE_ADMIN = cache_admin_pb2.DESCRIPTOR.services_by_name["CacheAdmin"]
_STOP_GRACE_SECONDS = 1.0


class Agent:
    """One node's agent. Its parts are attributes, for tests and for `kvtier bench`; `disk_io` is
    what DISK calls in place of the kernel, `open_accelerator` finds GPU's devices."""

    def __init__(
        self,
        config: AgentConfig,
        disk_io: BlockIO | None = None,
        open_accelerator: OpenAccelerator | None = None,
    ) -> None:
        self.config = config
        self.listening = Listening(config.listen)
        self.identity = Identity(
            epoch=secrets.randbits(64) or 1,
            version=version("kvtier"),
            max_batch_blocks=config.limits.max_batch_blocks,
            attach_socket=ATTACH_SOCKET,
        )
        self.mover = Mover(config.movers)
        self.host = new_host(config)
        self.placement = Placement(
            self.host,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: memory.available_bytes() - config.tiers.host.memory_reserve,
        )
        self.disk = new_disk(config, self.host, disk_io)
        self.cluster = new_cluster(config, self.host, self._describe)
        self._valkey: EmbeddedValkey | None = None
        slower = self._slower
        tiers = [self.host, *([self.disk.tier] if self.disk else [])]
        self.history = new_history(config, tiers, self.disk, self.cluster)
        self.gpu = Gpu(device_options(config), self.host, open_accelerator)
        devices = self.gpu.tiers
        self.leases = LeaseTable(time.monotonic)
        rules = namespace_rules(config)
        self.grants = Grants(tiers, self.leases, lease_limits(config), devices)
        self.namespaces = Namespaces(
            tiers,
            limit=config.limits.max_namespaces,
            layout_conflict=LayoutConflict(config.layout_conflict),
            rules=rules,
            devices=devices,
        )
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=config.limits.max_sessions,
            wall_clock=time.time,
            release=self.grants.release_slots,
            on_gone=lambda attachment: self.attach.forget(attachment),
        )
        self.promotion = Promotion(self.placement, [each.reader for each in slower])
        self.pins = Pins(tiers, self.promotion, pin_limits(config), time.monotonic)
        self.prefetching = Prefetching(self.promotion, prefetch_options(config))
        self.warming = Warming(
            self.namespaces,
            self.promotion,
            self.prefetching,
            warming_options(config),
            clock=time.monotonic,
        )
        self.loading = Loading(self.grants, self.promotion, self.prefetching)
        self.storing = Storing(self.grants, self.placement, self.mover, self.promotion)
        if self.history is not None:
            self.storing.on_refused = self.history.note_refusals
        for each in slower:
            self.loading.on_used.append(each.demotion.used)
            self.storing.on_stored.append(each.demotion.stored)
            self.storing.takers.append(each.demotion.would_take)
        self.expiry = Expiry(tiers, rules)
        self.lifecycle = Lifecycle()
        self.upkeep = Upkeep(
            self.host,
            self.mover,
            self.disk,
            self.cluster,
            self.namespaces,
            self.sessions,
            self.grants,
            self.lifecycle,
            self._set_ready,
            resizing := Resizing(self.placement, self.disk, [each.demotion for each in slower]),
            self.gpu,
        )
        self.upkeep.distrusted_seconds = self.loading.distrusted_seconds
        resizing.automatic = auto_sizing(config, self.host, resizing)
        self.gpu.watch(self.namespaces)
        if self.cluster:
            self.cluster.watch(self.namespaces)
        self.explaining = Explaining(
            self.namespaces,
            self.promotion,
            self.leases,
            self.history,
            {each.tier: each.policy_name for each in tiers},
            disk=self.disk,
            cluster=self.cluster,
        )
        self.recorder = Recorder(self.namespaces, time.time)
        self.calls = CallCounts()
        self.admission = Admission(admission_limits(config), time.monotonic)
        self._let_workers_go_first()
        self.seen = SeenRequests(config.history.requests, time.time)
        self.namespaces.on_dropped.append(self.seen.forget)
        self.events = Events(
            self.namespaces, kept=config.events.kept, max_logs=config.events.max_watchers
        )
        self.streams = self._streams()
        self.block_cache = BlockCacheService(
            self.identity,
            self.sessions,
            self.grants,
            self.loading,
            self.storing,
            self.streams,
            self.lifecycle,
            [*({each.tier for each in devices}), Tier.HOST, *(each.reader.tier for each in slower)],
            self.admission,
            self.seen,
            self.gpu,
        )
        self.attach = AttachServer(
            self.sessions,
            self.host.arena,
            access_rules(config),
            self.identity.epoch,
            DirectCalls(_BLOCK_CACHE, self.block_cache, self.admission, self.calls).answer,
            [each.arena for each in devices],
            self.gpu.operations(self.sessions),
        )
        self.metrics = metrics_endpoint(self)
        self.placement.on_retired = self.attach.announce_retired
        self.gpu.announce(self.attach.announce_retired)
        self._started_at = time.time()
        self._servers: list[Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _slower(self) -> list[Disk | Cluster]:
        """The tiers behind HOST, the nearest first."""
        return [each for each in (self.disk, self.cluster) if each is not None]

    def _let_workers_go_first(self) -> None:
        """What the agent does of itself makes way for calls."""
        self.prefetching.may_go_on = partial(self.admission.allows, Work.PREFETCH)
        for tier in self._slower:
            tier.demotion.may_go_on = partial(self.admission.allows, Work.DEMOTION)
            self.admission.on_relief.append(tier.demotion.go_on)

    def _streams(self) -> BlockStreams:
        sessions = StreamSessions(
            self.sessions,
            self.leases,
            access=stream_access(self.config),
            ttl_seconds=self.config.streams.session_seconds,
        )
        parts = self.mover, sessions, self.lifecycle
        reading = Reading(self.grants, self.loading, *parts)
        writing = Writing(self.grants, self.storing, *parts)
        return BlockStreams(sessions, self.leases, reading, writing)

    async def start(self, directory: SocketDirectory) -> None:
        """Listens on all sockets and serves."""
        if is_embedded(self.config):
            self._valkey = await asyncio.to_thread(
                EmbeddedValkey,
                embedded_directory(self.config),
                self.config.tiers.cluster.embedded_capacity,
            )
        if self.disk:
            await self.disk.restore_namespaces(self.namespaces)
        await self._serve(directory)
        self._log_start(directory)
        self._begin_work()

    async def _serve(self, directory: SocketDirectory) -> None:
        admin = CacheAdminService(
            self.identity,
            self.admission,
            self.upkeep,
            self.namespaces,
            self.sessions,
            self.leases,
            self.pins,
            self.history,
            warming=self.warming,
            events=self.events,
            listeners=self.listening,
        )
        inspection = CacheInspectionService(
            self.identity, self.namespaces, self.explaining, self.recorder
        )
        listing = CacheListingService(self.identity, self.namespaces, self.seen)
        stall_seconds = self.config.streams.stall_seconds
        operators = Admission(AdmissionLimits(calls=self.config.limits.max_calls))
        # A worker has one, with a session at least; others ask for health or events.
        most = self.config.limits.max_sessions + MAX_CONNECTIONS
        worker_server = Server(
            self.admission, stall_seconds, calls=self.calls, max_connections=most
        )
        worker_server.add(_BLOCK_CACHE, self.block_cache)
        admin_server = Server(operators, calls=self.calls)
        admin_server.add(_CACHE_ADMIN, admin, inspection, listing)
        events = EventsOffer(self.config, self.events, self.namespaces)
        events.to_workers(worker_server)
        events.to_operators(admin_server)
        self._servers = [worker_server, admin_server]
        mode, group_id = directory.worker_mode, directory.group_id
        (directory.path / ATTACH_SOCKET).unlink(missing_ok=True)
        self.attach.listen(directory.path / ATTACH_SOCKET, mode, group_id)
        await worker_server.listen(directory.path / WORKER_SOCKET, mode, group_id)
        await admin_server.listen(directory.path / ADMIN_SOCKET, 0o600, -1)
        self._servers += await self.listening.open(
            Offer(
                _BLOCK_CACHE, [self.block_cache], self.admission, self.calls, stall_seconds, most
            ),
            Offer(
                _CACHE_ADMIN,
                [admin, inspection, listing],
                operators,
                self.calls,
                also=events.to_operators,
            ),
        )

    def _log_start(self, directory: SocketDirectory) -> None:
        capacity, available = self.host.space.capacity_bytes, memory.available_bytes()
        if capacity > available:
            log.warning(
                "tiers.host.capacity is %d MiB, and %d MiB of memory are available: HOST stops "
                "growing when memory_reserve is reached",
                capacity >> 20,
                available >> 20,
            )
        log.info(
            "serving on %s; HOST %d MiB; pid %d; epoch %016x",
            directory.path,
            capacity >> 20,
            os.getpid(),
            self.identity.epoch,
        )

    def _begin_work(self) -> None:
        """Begins what runs until the end."""
        if self.cluster:
            self.cluster.start()
        self._spawn(self._recover())
        self._spawn(self.expiry.run())
        self._spawn(self.listening.watch())
        if self.metrics:
            self._spawn(self.metrics.run())
        if self.upkeep.auto_sizing is not None:
            self._spawn(self.upkeep.auto_sizing.run())
        if self.warming.options.is_predictive:
            self._spawn(self.warming.run())

    def _describe(self) -> NodeRecord:
        """What this node says of itself to the others."""
        namespaces = tuple(
            NodeNamespace(
                each.spec.tenant, each.spec.name, each.spec.layout_digest, each.generation_id
            )
            for each in self.namespaces
        )
        tiers = tuple(
            NodeTier(each.tier, each.capacity_bytes, each.used_bytes, each.block_count)
            for each in self.upkeep.stats("")
            if each.tier is not Tier.CLUSTER
        )
        return NodeRecord(
            node_id=f"{self.identity.epoch:016x}",
            name=node_name(self.config),
            epoch=self.identity.epoch,
            version=self.identity.version,
            pid=os.getpid(),
            address=f"unix:{self.config.socket_dir / WORKER_SOCKET}",
            started_at=self._started_at,
            interval_seconds=self.config.tiers.cluster.heartbeat,
            namespaces=namespaces,
            tiers=tiers,
        )

    async def _recover(self) -> None:
        """Reads what is on DISK while the agent serves; then it is ready."""
        if self.disk:
            await self.disk.recover(self.namespaces)
        await self._announce_ready(not self.lifecycle.is_draining)

    async def _announce_ready(self, is_ready: bool) -> None:
        for server in self._servers:
            await server.set_ready(is_ready)

    def _set_ready(self, is_ready: bool) -> None:
        self._spawn(self._announce_ready(is_ready))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("background work failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Lets calls in flight end for a moment, flushes DISK, then closes everything."""
        self.events.close()
        await asyncio.gather(*(server.stop(_STOP_GRACE_SECONDS) for server in self._servers))
        self.attach.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.upkeep.close()
        await self.promotion.close()
        results = await asyncio.gather(
            *(each.stop() for each in self._slower), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                log.error("a tier did not stop as it should", exc_info=result)
        if self._valkey is not None:
            await asyncio.to_thread(self._valkey.stop)
        await self.gpu.close()
        await self.placement.close()
        self.grants.close()
        self.pins.close()
        self.streams.sessions.close()
        self.mover.close()
        self.host.close()
        log.info("stopped")

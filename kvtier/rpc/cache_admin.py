"""The CacheAdmin service: what an operator calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvtier.access.listeners import Listeners
from kvtier.agent.serving.admission import Work
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.lease import LeaseKind, LeaseTable
from kvtier.errors import InvalidRequestError, NotFoundError
from kvtier.rpc import conversion as convert
from kvtier.rpc.cache_inspection import history_message
from kvtier.rpc.own_stats import own_stats
from kvtier.rpc.paging import page_of
from kvtier.rpc.pin_calls import PinCalls
from kvtier.rpc.server import Call
from kvtier.v1 import cache_admin_pb2 as pb

if TYPE_CHECKING:
    from kvtier.access.scope import Scope
    from kvtier.agent.operating.history import History
    from kvtier.agent.operating.upkeep import Upkeep
    from kvtier.agent.operating.warming import Warming
    from kvtier.agent.serving.admission import Admission
    from kvtier.agent.serving.events import Events
    from kvtier.agent.serving.pins import Pins
    from kvtier.agent.sessions.namespaces import Namespace, Namespaces
    from kvtier.agent.sessions.sessions import Session, Sessions
    from kvtier.rpc.block_cache import Identity
    from kvtier.tiers.cluster.nodes import NodeRecord

log = logging.getLogger(__name__)

_SHORTEST_INTERVAL_SECONDS = 0.1
_DEFAULT_GRACE_SECONDS = 10.0
#: Whose blocks have ages and sizes that the agent knows.
_SIZED = frozenset({Tier.HOST, Tier.DISK})


class CacheAdminService(PinCalls):
    """Reads the books of the agent, and passes on what an operator wants done."""

    def __init__(
        self,
        identity: Identity,
        admission: Admission,
        upkeep: Upkeep,
        namespaces: Namespaces,
        sessions: Sessions,
        leases: LeaseTable,
        pins: Pins,
        history: History | None = None,
        *,
        warming: Warming | None = None,
        events: Events | None = None,
        listeners: Listeners | None = None,
    ) -> None:
        super().__init__(pins, namespaces, identity)
        self._identity = identity
        self._admission = admission
        self._upkeep = upkeep
        self._namespaces = namespaces
        self._sessions = sessions
        self._leases = leases
        self._history = history
        self._warming = warming
        self._events = events
        self._listeners = listeners
        self._started = time.monotonic()

    async def GetStats(self, request: pb.GetStatsRequest, call: Call) -> pb.Stats:
        return self._stats(request.namespace, call.caller.scope)

    async def WatchStats(
        self, request: pb.WatchStatsRequest, call: Call
    ) -> AsyncIterator[pb.Stats]:
        interval = convert.seconds_from(request.interval, "interval") or 1.0
        if interval < _SHORTEST_INTERVAL_SECONDS:
            raise InvalidRequestError(
                f"interval is {interval} s; at least {_SHORTEST_INTERVAL_SECONDS} s"
            )
        while True:
            yield self._stats(request.namespace, call.caller.scope)
            await asyncio.sleep(interval)

    async def ResizeTier(self, request: pb.ResizeTierRequest, call: Call) -> pb.ResizeTierResponse:
        [tier] = convert.tiers_from([request.tier], "tier")
        stats = self._upkeep.resize(tier, request.capacity_bytes)
        return pb.ResizeTierResponse(
            capacity_bytes=stats.capacity_bytes, allocated_bytes=stats.allocated_bytes
        )

    async def EvictBlocks(
        self, request: pb.EvictBlocksRequest, call: Call
    ) -> pb.EvictBlocksResponse:
        _check_named(request.namespace)

        def keys(namespace: Namespace) -> BlockKeys | None:
            if not request.HasField("keys"):
                return None
            return convert.keys_from(request.keys, namespace, self._identity.max_batch_blocks)

        min_age = convert.seconds_from(request.min_age, "min_age")
        tiers, used_bytes = _evicted_tiers(request, is_by_age=min_age > 0), 0
        if request.HasField("target"):
            [tier] = tiers
            evicted, used_bytes = await self._upkeep.trim(
                request.namespace, tier, request.target.used_bytes, dry_run=request.validate_only
            )
        else:
            evicted = await self._upkeep.evict(
                request.namespace,
                keys,
                tiers,
                dry_run=request.validate_only,
                force=request.force,
                min_age_seconds=min_age,
            )
        if not request.validate_only:
            log.info("evicted %d blocks of %s", evicted.gone + evicted.deferred, request.namespace)
        return pb.EvictBlocksResponse(
            evicted_count=evicted.gone,
            deferred_count=evicted.deferred,
            pinned_count=evicted.pinned,
            used_bytes=used_bytes,
        )

    async def WarmPrefix(self, request: pb.WarmPrefixRequest, call: Call) -> pb.WarmPrefixResponse:
        _check_named(request.namespace)
        if self._warming is None:
            raise NotFoundError("this agent has no tier below HOST")
        accepted, ready = await self._warming.warm(
            request.namespace,
            lambda namespace: convert.keys_from(
                request.keys, namespace, self._identity.max_batch_blocks
            ),
        )
        return pb.WarmPrefixResponse(accepted_count=accepted, ready_count=ready)

    async def InvalidateNamespace(
        self, request: pb.InvalidateNamespaceRequest, call: Call
    ) -> pb.InvalidateNamespaceResponse:
        _check_named(request.namespace)
        namespaces, blocks = await self._upkeep.invalidate(request.namespace)
        log.info("invalidated %s: %d blocks", request.namespace, blocks)
        return pb.InvalidateNamespaceResponse(namespace_count=namespaces, block_count=blocks)

    async def FlushTier(self, request: pb.FlushTierRequest, call: Call) -> pb.FlushTierResponse:
        return pb.FlushTierResponse(flushed_bytes=await self._upkeep.flush(_tier(request.tier)))

    async def ScrubTier(
        self, request: pb.ScrubTierRequest, call: Call
    ) -> AsyncIterator[pb.ScrubProgress]:
        async for progress in self._upkeep.scrub(_tier(request.tier), request.rate_limit_bytes):
            yield pb.ScrubProgress(
                scanned_count=progress.scanned_count,
                corrupt_count=progress.corrupt_count,
                scanned_bytes=progress.scanned_bytes,
                total_count=progress.total_count,
                done=progress.is_done,
            )

    async def DrainAgent(
        self, request: pb.DrainAgentRequest, call: Call
    ) -> AsyncIterator[pb.DrainProgress]:
        grace = _DEFAULT_GRACE_SECONDS
        if request.HasField("grace_period"):
            grace = convert.seconds_from(request.grace_period, "grace_period")
        log.info("draining: leases may go on for %g s", grace)
        async for progress in self._upkeep.drain(grace):
            yield pb.DrainProgress(
                session_count=progress.session_count,
                lease_count=progress.lease_count,
                unflushed_bytes=progress.unflushed_bytes,
                done=progress.is_done,
            )

    async def ResumeAgent(
        self, request: pb.ResumeAgentRequest, call: Call
    ) -> pb.ResumeAgentResponse:
        self._upkeep.resume()
        log.info("resumed")
        return pb.ResumeAgentResponse()

    async def ListSessions(
        self, request: pb.ListSessionsRequest, call: Call
    ) -> pb.ListSessionsResponse:
        chosen = set(self._namespaces.select("", call.caller.scope))
        visible = [each for each in self._sessions if each.namespace in chosen]
        ordered = sorted(visible, key=lambda each: each.session_id)
        page, token = page_of(ordered, request.page_size, request.page_token)
        return pb.ListSessionsResponse(
            sessions=[self._session(each) for each in page], next_page_token=token
        )

    async def ListNamespaces(
        self, request: pb.ListNamespacesRequest, call: Call
    ) -> pb.ListNamespacesResponse:
        scope = call.caller.scope
        visible = self._namespaces.select("", scope)
        page, token = page_of(visible, request.page_size, request.page_token)
        return pb.ListNamespacesResponse(
            namespaces=[self._namespace(each, scope) for each in page], next_page_token=token
        )

    async def ListNodes(self, request: pb.ListNodesRequest, call: Call) -> pb.ListNodesResponse:
        nodes = await self._upkeep.nodes()
        page, token = page_of(nodes, request.page_size, request.page_token)
        return pb.ListNodesResponse(nodes=map(self._node, page), next_page_token=token)

    def _stats(self, selector: str, scope: Scope) -> pb.Stats:
        namespaces = self._namespaces.select(selector, scope)
        chosen = {each.namespace_id for each in namespaces}
        listeners = self._listeners
        expires_at = None if listeners is None else listeners.certificate_expires_at
        stats = pb.Stats(
            epoch=self._identity.epoch,
            sample_time=convert.timestamp(time.time()),
            tiers=[pb.TierStats(**asdict(tier)) for tier in self._upkeep.stats(selector, scope)],
            session_count=sum(each.namespace.namespace_id in chosen for each in self._sessions),
            lease_count=sum(
                lease.namespace_id in chosen and lease.kind is not LeaseKind.QUARANTINE
                for lease in self._leases
            ),
            rejected_count=self._admission.refused_calls,
            version=self._identity.version,
            uptime=convert.duration(time.monotonic() - self._started),
            namespace_count=len(namespaces),
            history=history_message(self._history),
            compute_seconds_saved=sum(each.usage.compute_seconds_saved for each in namespaces),
            **_refusals(self._admission),
            is_draining=self._upkeep.is_draining,
            events=_event_stats(self._events),
            listen_errors=[] if listeners is None else listeners.errors,
            certificate_expire_time=None if expires_at is None else convert.timestamp(expires_at),
        )
        return stats if scope.is_all else own_stats(stats)

    def _session(self, session: Session) -> pb.Session:
        leases = self._leases.of_session(session.session_id)
        if session.leaser is not None:
            leases += self._leases.of_session(session.leaser.session_id)
        return pb.Session(
            session_id=session.session_id,
            namespace=session.namespace.label,
            worker=session.worker,
            pid=session.attachment.pid,
            uid=session.attachment.uid,
            create_time=convert.timestamp(session.created_at),
            lease_count=len(leases),
            leased_bytes=sum(lease.size_bytes for lease in leases),
            quarantined_bytes=sum(
                lease.size_bytes for lease in leases if lease.kind is LeaseKind.QUARANTINE
            ),
        )

    def _namespace(self, namespace: Namespace, scope: Scope) -> pb.NamespaceInfo:
        blocks = [0] * len(Tier)
        used = [0] * len(Tier)
        pinned = [0] * len(Tier)
        for tier in namespace.tiers:
            classes = namespace.classes_of(tier)
            blocks[tier - 1] = sum(len(each.residency) for each in classes)
            used[tier - 1] = sum(each.used_slots * each.slot_bytes for each in classes)
            pinned[tier - 1] = sum(each.pinned.size_bytes for each in classes)
        copies = [
            pb.NamespaceInfo.Copies(
                device=name,
                block_count=sum(len(each.residency) for each in classes),
                used_bytes=sum(each.used_slots * each.slot_bytes for each in classes),
            )
            for name, classes in zip(self._upkeep.devices, map(set, namespace.devices), strict=True)
        ]
        blocks[Tier.GPU - 1] = sum(each.block_count for each in copies)
        used[Tier.GPU - 1] = sum(each.used_bytes for each in copies)
        holdings = {}
        if scope.covers_all_of(namespace.rule.pattern):  # they are of all its namespaces together
            holdings = self._upkeep.holdings(namespace)
        ttl = namespace.rule.ttl_seconds
        return pb.NamespaceInfo(
            spec=convert.spec_message(namespace.spec),
            layout_digest=namespace.spec.layout_digest,
            generation_id=namespace.generation_id,
            block_count=blocks,
            used_bytes=used,
            sibling_differences=self._namespaces.sibling_differences(namespace.spec),
            session_count=namespace.session_count,
            pinned_bytes=pinned,
            rule=namespace.rule.name,
            ttl=None if ttl is None else convert.duration(ttl),
            limit_bytes=_per_tier({t: each.limit_bytes or 0 for t, each in holdings.items()}),
            guaranteed_bytes=_per_tier({t: each.guaranteed_bytes for t, each in holdings.items()}),
            occupied_bytes=_per_tier({t: each.occupied_bytes for t, each in holdings.items()}),
            copies=copies,
        )

    def _node(self, node: NodeRecord) -> pb.Node:
        return pb.Node(
            node_id=node.node_id,
            name=node.name,
            address=node.address,
            version=node.version,
            epoch=node.epoch,
            pid=node.pid,
            is_self=node.epoch == self._identity.epoch,
            start_time=convert.timestamp(node.started_at),
            last_seen_time=convert.timestamp(node.seen_at),
            heartbeat_interval=convert.duration(node.interval_seconds),
            namespaces=[pb.NodeNamespace(**asdict(each)) for each in node.namespaces],
            tiers=[pb.NodeTier(**asdict(each)) for each in node.tiers],
        )


def _refusals(admission: Admission) -> dict[str, int]:
    """By the fields of Stats."""
    refused = admission.refused
    return {
        "refused_ask_count": refused[Work.ASK],
        "refused_load_count": refused[Work.LOAD],
        "refused_store_count": refused[Work.STORE],
        "delayed_demotion_count": refused[Work.DEMOTION],
        "refused_prefetch_count": refused[Work.PREFETCH],
    }


def _event_stats(events: Events | None) -> pb.EventStats:
    if events is None:
        return pb.EventStats()
    return pb.EventStats(
        watcher_count=events.watcher_count,
        memory_bytes=events.size_bytes,
        lost_count=events.lost_count,
    )


def _per_tier(values: Mapping[Tier, int]) -> list[int]:
    """In the order of the Tier enum."""
    return [values.get(tier, 0) for tier in Tier]


def _evicted_tiers(request: pb.EvictBlocksRequest, *, is_by_age: bool) -> frozenset[Tier]:
    """From which a request evicts. Raises InvalidRequestError for what does not go together."""
    tiers = convert.tiers_from(request.tiers, "tiers")
    if request.HasField("target"):
        if len(tiers) != 1 or not tiers <= _SIZED:
            raise InvalidRequestError("tiers must be HOST or DISK, one of them, with a target")
        if request.HasField("keys") or is_by_age or request.force:
            raise InvalidRequestError("target does not go with keys, min_age or force")
        return tiers
    if is_by_age:
        if Tier.CLUSTER in tiers:
            raise InvalidRequestError("tiers: CLUSTER does not say how old its blocks are")
        return tiers or _SIZED
    return tiers or frozenset(Tier)


def _check_named(selector: str) -> None:
    if not selector:
        raise InvalidRequestError("namespace is empty; name one as tenant/name")


def _tier(value: int) -> Tier:
    """DISK when unset."""
    [tier] = convert.tiers_from([value or Tier.DISK], "tier")
    return tier

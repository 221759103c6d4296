"""The CacheAdmin service: what an operator calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TypeVar

from kvtier.agent.evicting import Evicted, evict_namespace, evict_prefixes
from kvtier.agent.mover import Mover
from kvtier.agent.namespaces import Namespace, Namespaces
from kvtier.agent.sessions import Session, Sessions
from kvtier.agent.stats import host_stats
from kvtier.core.block import Tier
from kvtier.core.lease import LeaseKind, LeaseTable
from kvtier.errors import InvalidRequestError
from kvtier.rpc import conversion as convert
from kvtier.rpc.block_cache import Identity
from kvtier.rpc.server import Call, Gate
from kvtier.tiers.host import HostTier
from kvtier.v1 import cache_admin_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_SHORTEST_INTERVAL_SECONDS = 0.1


class CacheAdminService:
    """Reads the books of the agent, and evicts."""

    def __init__(
        self,
        identity: Identity,
        gate: Gate,
        host: HostTier,
        namespaces: Namespaces,
        sessions: Sessions,
        leases: LeaseTable,
        mover: Mover,
    ) -> None:
        self._identity = identity
        self._gate = gate
        self._host = host
        self._namespaces = namespaces
        self._sessions = sessions
        self._leases = leases
        self._mover = mover
        self._started = time.monotonic()

    async def GetStats(self, request: pb.GetStatsRequest, call: Call) -> pb.Stats:
        return self._stats(request.namespace)

    async def WatchStats(
        self, request: pb.WatchStatsRequest, call: Call
    ) -> AsyncIterator[pb.Stats]:
        interval = convert.seconds_from(request.interval, "interval") or 1.0
        if interval < _SHORTEST_INTERVAL_SECONDS:
            raise InvalidRequestError(
                f"interval is {interval} s; at least {_SHORTEST_INTERVAL_SECONDS} s"
            )
        while True:
            yield self._stats(request.namespace)
            await asyncio.sleep(interval)

    async def EvictBlocks(
        self, request: pb.EvictBlocksRequest, call: Call
    ) -> pb.EvictBlocksResponse:
        if not request.namespace:
            raise InvalidRequestError("namespace is empty; name one as tenant/name")
        tiers = convert.tiers_from(request.tiers, "tiers")
        total = Evicted()
        for namespace in self._namespaces.select(request.namespace):
            if tiers and Tier.HOST not in tiers:
                continue
            evicted = await self._evict(namespace, request)
            total.gone += evicted.gone
            total.deferred += evicted.deferred
        if not request.validate_only:
            log.info("evicted %d blocks of %s", total.gone + total.deferred, request.namespace)
        return pb.EvictBlocksResponse(evicted_count=total.gone, deferred_count=total.deferred)

    async def _evict(self, namespace: Namespace, request: pb.EvictBlocksRequest) -> Evicted:
        if not request.HasField("keys"):
            return await evict_namespace(namespace, dry_run=request.validate_only)
        keys = convert.keys_from(request.keys, namespace, self._identity.max_batch_blocks)
        return await evict_prefixes(namespace, keys, dry_run=request.validate_only)

    async def ListSessions(
        self, request: pb.ListSessionsRequest, call: Call
    ) -> pb.ListSessionsResponse:
        ordered = sorted(self._sessions, key=lambda each: each.session_id)
        page, token = _page(ordered, request.page_size, request.page_token)
        return pb.ListSessionsResponse(
            sessions=[self._session(each) for each in page], next_page_token=token
        )

    async def ListNamespaces(
        self, request: pb.ListNamespacesRequest, call: Call
    ) -> pb.ListNamespacesResponse:
        page, token = _page(list(self._namespaces), request.page_size, request.page_token)
        return pb.ListNamespacesResponse(
            namespaces=[self._namespace(each) for each in page], next_page_token=token
        )

    def _stats(self, selector: str) -> pb.Stats:
        namespaces = self._namespaces.select(selector)
        chosen = {each.namespace_id for each in namespaces}
        tier = asdict(host_stats(self._host, self._leases, self._mover, namespaces))
        return pb.Stats(
            epoch=self._identity.epoch,
            sample_time=convert.timestamp(time.time()),
            tiers=[pb.TierStats(state=pb.TierStats.ACTIVE, **tier)],
            session_count=sum(each.namespace.namespace_id in chosen for each in self._sessions),
            lease_count=sum(
                lease.namespace_id in chosen and lease.kind is not LeaseKind.QUARANTINE
                for lease in self._leases
            ),
            rejected_count=self._gate.rejected_count,
            version=self._identity.version,
            uptime=convert.duration(time.monotonic() - self._started),
            namespace_count=len(namespaces),
        )

    def _session(self, session: Session) -> pb.Session:
        leases = self._leases.of_session(session.session_id)
        return pb.Session(
            session_id=session.session_id,
            namespace=session.namespace.label,
            worker=session.worker,
            pid=session.attachment.pid,
            uid=session.attachment.uid,
            create_time=convert.timestamp(session.created_at),
            lease_count=len(leases),
            leased_bytes=sum(lease.size_bytes for lease in leases),
        )

    def _namespace(self, namespace: Namespace) -> pb.NamespaceInfo:
        blocks = [0] * len(Tier)
        used = [0] * len(Tier)
        blocks[Tier.HOST - 1] = sum(len(each.residency) for each in namespace.classes)
        used[Tier.HOST - 1] = sum(each.used_slots * each.slot_bytes for each in namespace.classes)
        return pb.NamespaceInfo(
            spec=convert.spec_message(namespace.spec),
            layout_digest=namespace.spec.layout_digest,
            generation_id=namespace.generation_id,
            block_count=blocks,
            used_bytes=used,
            sibling_differences=self._namespaces.sibling_differences(namespace.spec),
            session_count=namespace.session_count,
        )


def _page(items: Sequence[T], size: int, token: str) -> tuple[Sequence[T], str]:
    """A page and the token of the next; items keep their order between calls."""
    if size < 0 or size > _LARGEST_PAGE:
        raise InvalidRequestError(f"page_size is {size}; it must be 0 to {_LARGEST_PAGE}")
    if token and not token.isdecimal():
        raise InvalidRequestError("page_token is not one that this agent gave")
    start = int(token or 0)
    stop = start + (size or _DEFAULT_PAGE)
    return items[start:stop], str(stop) if stop < len(items) else ""

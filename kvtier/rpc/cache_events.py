"""The CacheEvents service: what a router subscribes to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from kvtier.agent.serving.event_log import Batch, Change, Run
from kvtier.agent.serving.events import Events, position_of
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.sessions.sessions import Access
from kvtier.errors import AccessDeniedError
from kvtier.rpc import conversion as convert
from kvtier.rpc.server import Call
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_events_pb2 as pb


class CacheEventsService:
    """For the peers of one socket; `access` is what they may use, None is nothing."""

    def __init__(self, events: Events, namespaces: Namespaces, access: Access | None) -> None:
        self._events = events
        self._namespaces = namespaces
        self._access = access
        self._last: tuple[Batch, bytes] | None = None

    async def WatchEvents(self, request: pb.WatchEventsRequest, call: Call) -> AsyncIterator[bytes]:
        namespace = self._allowed(request.namespace)
        start = position_of(request.start_revision, request.epoch, snapshot=request.snapshot)
        async with aclosing(self._events.watch(namespace, start)) as batches:
            async for epoch, batch in batches:
                yield self._message(namespace, epoch, batch)

    def _allowed(self, selector: str) -> Namespace:
        tenant = selector.partition("/")[0]
        if selector and (self._access is None or not self._access.allows(tenant)):
            # Before anything is said of what there is.
            raise AccessDeniedError(
                f"namespace {selector!r}: tenant {tenant!r} may not be watched on this socket: see "
                "`streams.tenants` in the agent's configuration, or use admin.sock"
            )
        return self._namespaces.select_one(selector)

    def _message(self, namespace: Namespace, epoch: int, batch: Batch) -> bytes:
        """Watchers that are as far as each other get the same bytes."""
        if self._last is None or self._last[0] is not batch:
            message = pb.WatchEventsResponse(
                epoch=epoch,
                revision=batch.revision,
                event_time=convert.timestamp(time.time()),
                events=map(_event, batch.runs),
                snapshot_done=batch.is_snapshot_end,
                namespace=namespace.label,
            )
            self._last = batch, message.SerializeToString()
        return self._last[1]


def _event(run: Run) -> pb.Event:
    keys = block_pb2.BlockKeys(
        hash_bytes=len(run.hashes[0]),
        hashes=b"".join(run.hashes),
        group=run.lane.group,
        shard=run.lane.shard,
        parent_hash=run.parent,
        position=run.position,
    )
    tier = int(run.tier)
    if run.change is Change.STORED:
        return pb.Event(blocks_stored=pb.Event.BlocksStored(keys=keys, tier=tier))  # type: ignore[arg-type]
    return pb.Event(blocks_removed=pb.Event.BlocksRemoved(keys=keys, tier=tier))  # type: ignore[arg-type]

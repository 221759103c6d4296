"""The methods of CacheAdmin that look into single blocks and requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from kvtier.agent.turns import READ_SLICE, slices
from kvtier.rpc import conversion as convert
from kvtier.rpc.server import Call
from kvtier.v1 import cache_admin_pb2 as pb

if TYPE_CHECKING:
    from kvtier.agent.operating.explaining import Explaining, Explanation
    from kvtier.agent.operating.history import History
    from kvtier.agent.operating.recording import Asked, Recorder
    from kvtier.agent.sessions.namespaces import Namespaces
    from kvtier.rpc.block_cache import Identity


class CacheInspectionService:
    """ExplainBlocks and RecordRequests."""

    def __init__(
        self, identity: Identity, namespaces: Namespaces, explaining: Explaining, recorder: Recorder
    ) -> None:
        self._identity = identity
        self._namespaces = namespaces
        self._explaining = explaining
        self._recorder = recorder

    async def ExplainBlocks(
        self, request: pb.ExplainBlocksRequest, call: Call
    ) -> pb.ExplainBlocksResponse:
        namespace = self._namespaces.select_one(request.namespace)
        keys = convert.keys_from(request.keys, namespace, self._identity.max_batch_blocks)
        scope = call.caller.scope
        explanations = await self._explaining.explain(namespace, keys, scope)
        answer = pb.ExplainBlocksResponse()
        if scope.is_all:
            answer.history.CopyFrom(history_message(self._explaining.history))
        async for part in slices(len(explanations), READ_SLICE):
            answer.explanations.extend(map(_explanation, explanations[part]))
        return answer

    async def RecordRequests(
        self, request: pb.RecordRequestsRequest, call: Call
    ) -> AsyncIterator[pb.RecordedRequest]:
        with self._recorder.recording(request.namespace, call.caller.scope) as recording:
            yield pb.RecordedRequest()
            while True:
                asked = await recording.take()
                message = _recorded(asked)
                hashes = asked.keys.hashes
                async for part in slices(len(hashes), READ_SLICE):
                    message.hashes.extend(int.from_bytes(each[:8]) for each in hashes[part])
                yield message


def history_message(history: History | None) -> pb.HistoryStats:
    if history is None:
        return pb.HistoryStats()
    return pb.HistoryStats(
        entry_count=history.entry_count,
        capacity=history.capacity,
        memory_bytes=history.size_bytes,
        dropped_count=history.dropped_count,
    )


def _explanation(each: Explanation) -> pb.Explanation:
    return pb.Explanation(
        fate=each.fate,  # type: ignore[arg-type]
        tiers=each.tiers,  # type: ignore[arg-type]
        left_tier=each.left_tier,  # type: ignore[arg-type]
        time=convert.timestamp(each.time) if each.time else None,
        reason=each.reason,
        layout_differences=each.layout_differences,
        lease_count=each.lease_count,
        is_pinned=each.is_pinned,
    )


def _recorded(asked: Asked) -> pb.RecordedRequest:
    """Without its hashes."""
    spec, lane = asked.namespace.spec, asked.keys.lane
    return pb.RecordedRequest(
        time=convert.timestamp(asked.time),
        namespace=spec.label,
        block_tokens=spec.block_tokens,
        block_bytes=spec.block_bytes[lane.group],
        group=lane.group,
        shard=lane.shard,
        position=asked.keys.position,
        lost_count=asked.lost_count,
    )

"""The methods of CacheAdmin that list blocks and requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.agent.operating.listing import Listed, Order, Place, Wish, page_of_blocks
from kvtier.agent.turns import WRITE_SLICE, slices
from kvtier.core.block import Tier
from kvtier.errors import InvalidRequestError, NotFoundError
from kvtier.rpc import conversion as convert
from kvtier.rpc.paging import page_of, page_size
from kvtier.rpc.server import Call
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_admin_pb2 as pb

if TYPE_CHECKING:
    from kvtier.agent.operating.seen_requests import SeenLookup, SeenRequest, SeenRequests
    from kvtier.agent.sessions.namespaces import Namespace, Namespaces
    from kvtier.rpc.block_cache import Identity

_LISTED = frozenset({Tier.HOST, Tier.DISK})


class CacheListingService:
    """ListBlocks, ListRequests and GetRequest."""

    def __init__(self, identity: Identity, namespaces: Namespaces, seen: SeenRequests) -> None:
        self._identity = identity
        self._namespaces = namespaces
        self._seen = seen

    async def ListBlocks(self, request: pb.ListBlocksRequest, call: Call) -> pb.ListBlocksResponse:
        namespace = self._namespaces.select_one(request.namespace)
        after = Place.parse(request.page_token) if request.page_token else None
        blocks, next_place = await page_of_blocks(
            namespace, self._wish(request, namespace), page_size(request.page_size), after
        )
        answer = pb.ListBlocksResponse(
            next_page_token="" if next_place is None else str(next_place)
        )
        async for part in slices(len(blocks), WRITE_SLICE):
            answer.blocks.extend(map(_block, blocks[part]))
        return answer

    def _wish(self, request: pb.ListBlocksRequest, namespace: Namespace) -> Wish:
        keys = None
        if request.HasField("keys"):
            keys = convert.keys_from(request.keys, namespace, self._identity.max_batch_blocks)
        if request.order not in (0, *Order):
            raise InvalidRequestError(f"order is {request.order}; it must be {_names(Order)}")
        return Wish(
            _listed_tiers(request.tiers, namespace),
            keys,
            request.ends_only,
            request.pinned_only,
            request.leased_only,
            convert.seconds_from(request.min_age, "min_age"),
            Order(request.order or Order.TABLE),
            request.descending,
        )

    async def ListRequests(
        self, request: pb.ListRequestsRequest, call: Call
    ) -> pb.ListRequestsResponse:
        chosen = set(self._namespaces.select(request.namespace, call.caller.scope))
        requests = [each for each in self._seen if each.namespace in chosen]
        page, token = page_of(requests, request.page_size, request.page_token)
        answer = pb.ListRequestsResponse(
            next_page_token=token,
            capacity=self._seen.limit,
            memory_bytes=self._seen.size_bytes,
        )
        async for part in slices(len(page), WRITE_SLICE):
            answer.requests.extend(map(_request, page[part]))
        return answer

    async def GetRequest(self, request: pb.GetRequestRequest, call: Call) -> pb.SeenRequest:
        if not request.namespace:
            raise InvalidRequestError("namespace is empty; name one as tenant/name@digest")
        if not request.request_id:
            raise InvalidRequestError("request_id is empty; ListRequests tells which there are")
        found = [
            seen
            for namespace in self._namespaces.select(request.namespace)
            if (seen := self._seen.find(namespace, request.request_id)) is not None
        ]
        if not found:
            raise NotFoundError(self._why_unseen(request))
        if len(found) > 1:
            labels = ", ".join(each.namespace.label for each in found)
            raise InvalidRequestError(
                f"{len(found)} layouts have a request {request.request_id!r}; "
                f"choose one of {labels}"
            )
        return _request(found[0], with_hashes=True)

    def _why_unseen(self, request: pb.GetRequestRequest) -> str:
        text = f"no request {request.request_id!r} of {request.namespace} is known"
        if not self._seen.limit:
            return f"{text}: none is kept (history.requests is 0)"
        return f"{text}: the last {self._seen.limit:,} whose workers name them are (see history)"


def _names(order: type[Order]) -> str:
    return ", ".join(each.name for each in order)


def _listed_tiers(values: Sequence[int], namespace: Namespace) -> frozenset[Tier]:
    tiers = convert.tiers_from(values, "tiers")
    for tier in sorted(tiers - _LISTED):
        raise InvalidRequestError(f"tiers: {tier.name} cannot be listed; HOST and DISK can")
    for tier in sorted(tiers - set(namespace.tiers)):
        raise NotFoundError(f"this agent has no {tier.name} tier: set tiers.disk.paths")
    return tiers or _LISTED


def _block(each: Listed) -> pb.ListedBlock:
    return pb.ListedBlock(
        block_hash=each.block_hash,
        group=each.lane.group,
        shard=each.lane.shard,
        position=each.position,
        tier=each.tier,  # type: ignore[arg-type]
        other_tiers=each.other_tiers,  # type: ignore[arg-type]
        slot_bytes=each.slot_bytes,
        age=None if each.age_seconds == math.inf else convert.duration(int(each.age_seconds)),
        hit_count=each.hit_count,
        is_pinned=each.is_pinned,
        is_leased=each.is_leased,
    )


def _request(seen: SeenRequest, *, with_hashes: bool = False) -> pb.SeenRequest:
    return pb.SeenRequest(
        request_id=seen.request_id,
        namespace=seen.namespace.label,
        time=convert.timestamp(seen.time),
        lookups=[_lookup(seen.lookups[group], with_hashes) for group in sorted(seen.lookups)],
    )


def _lookup(lookup: SeenLookup, with_hashes: bool) -> pb.SeenLookup:
    return pb.SeenLookup(
        keys=block_pb2.BlockKeys(
            hash_bytes=lookup.hash_bytes,
            hashes=lookup.hashes if with_hashes else b"",
            group=lookup.lane.group,
            shard=lookup.lane.shard,
            parent_hash=lookup.parent,
            position=lookup.position,
        ),
        block_count=lookup.block_count,
        found_count=lookup.found_count,
        tier_counts=[lookup.tiers.get(tier, 0) for tier in Tier],
    )

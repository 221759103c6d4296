"""The operator's client."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import Any, Final, Literal

from kvtier.client.endpoint import Endpoint, Tls, endpoint_of
from kvtier.client.events import EventsClient
from kvtier.client.service import Service
from kvtier.core.block import Tier
from kvtier.v1 import block_pb2, cache_events_pb2
from kvtier.v1 import cache_admin_pb2 as pb

_LONG_TIMEOUT_SECONDS: Final = 300.0  # for calls that wait for a device
_PAGE: Final = 1000
_NODES_PAGE: Final = 100  # a node may tell of hundreds of namespaces


class AdminClient:
    """Calls one agent's CacheAdmin. A context manager. Methods raise KvtierErrors.

    `address` is that of admin.sock, or HOST:PORT; then `token` and `tls` are as of `Client`.
    """

    def __init__(
        self,
        address: str | Endpoint,
        timeout_seconds: float = 5.0,
        *,
        token: str | None = None,
        tls: Tls | Literal["insecure"] | None = None,
    ) -> None:
        if isinstance(address, str):
            address = endpoint_of(address, token, tls, os.environ)
        self._service = Service(address, pb.DESCRIPTOR.services_by_name["CacheAdmin"])
        self._address = address
        self._timeout_seconds = timeout_seconds

    def get_stats(self, namespace: str = "") -> pb.Stats:
        """Now; of all namespaces, or of those that `tenant/name` names."""
        answer: pb.Stats = self._call("GetStats", pb.GetStatsRequest(namespace=namespace))
        return answer

    def watch_stats(
        self, namespace: str = "", interval_seconds: float = 1.0
    ) -> Generator[pb.Stats]:
        """At an interval, until the generator is closed."""
        request = pb.WatchStatsRequest(namespace=namespace)
        request.interval.FromNanoseconds(int(interval_seconds * 1e9))
        return self._service.stream("WatchStats", request)

    def list_sessions(self) -> list[pb.Session]:
        return self._pages("ListSessions", pb.ListSessionsRequest(page_size=_PAGE), "sessions")

    def list_namespaces(self) -> list[pb.NamespaceInfo]:
        return self._pages(
            "ListNamespaces", pb.ListNamespacesRequest(page_size=_PAGE), "namespaces"
        )

    def nodes(self) -> list[pb.Node]:
        """The agents that share the CLUSTER tier, this one among them, by name.

        NotFoundError if the agent has no such tier.
        """
        return self._pages("ListNodes", pb.ListNodesRequest(page_size=_NODES_PAGE), "nodes")

    def resize_tier(self, tier: Tier, capacity_bytes: int) -> pb.ResizeTierResponse:
        """Gives HOST or DISK another capacity, until the agent stops.

        It may have more allocated on return: it is smaller when its stats say so.
        """
        request = pb.ResizeTierRequest(tier=_name(tier), capacity_bytes=capacity_bytes)
        answer: pb.ResizeTierResponse = self._call("ResizeTier", request)
        return answer

    def evict_blocks(
        self,
        namespace: str,
        hashes: Sequence[bytes] = (),
        group: int = 0,
        shard: int = 0,
        tiers: Collection[Tier] = (),
        validate_only: bool = False,
        force: bool = False,
        min_age_seconds: float = 0.0,
        down_to_bytes: int | None = None,
    ) -> pb.EvictBlocksResponse:
        """Evicts these blocks and what continues them; without hashes, the whole namespace.

        All hashes have the same length. Without tiers, from all of them. What is pinned stays in
        HOST and on DISK, but with `force`. With `min_age_seconds` only what is so old goes, and
        with `down_to_bytes` as much as is needed for a tier to be within it.
        """
        request = pb.EvictBlocksRequest(
            namespace=namespace,
            tiers=map(_name, tiers),
            validate_only=validate_only,
            force=force,
        )
        if hashes:
            request.keys.CopyFrom(_keys(hashes, group, shard))
        if min_age_seconds:
            request.min_age.FromNanoseconds(int(min_age_seconds * 1e9))
        if down_to_bytes is not None:
            request.target.used_bytes = down_to_bytes
        answer: pb.EvictBlocksResponse = self._call("EvictBlocks", request)
        return answer

    def list_blocks(self, request: pb.ListBlocksRequest) -> pb.ListBlocksResponse:
        """A page of a namespace's blocks; the answer says where the next one begins."""
        answer: pb.ListBlocksResponse = self._call("ListBlocks", request)
        return answer

    def list_requests(
        self, namespace: str = "", page_size: int = 0, page_token: str = ""
    ) -> pb.ListRequestsResponse:
        """A page of the requests that workers named, the latest first."""
        request = pb.ListRequestsRequest(
            namespace=namespace, page_size=page_size, page_token=page_token
        )
        answer: pb.ListRequestsResponse = self._call("ListRequests", request)
        return answer

    def get_request(self, namespace: str, request_id: str) -> pb.SeenRequest:
        """One of them, with its hashes. NotFoundError if it is not known, or no longer."""
        request = pb.GetRequestRequest(namespace=namespace, request_id=request_id)
        answer: pb.SeenRequest = self._call("GetRequest", request)
        return answer

    def explain_blocks(
        self, namespace: str, hashes: Sequence[bytes], group: int = 0, shard: int = 0
    ) -> pb.ExplainBlocksResponse:
        """Where each block is, or why it is not here.

        All hashes have the same length. InvalidRequestError if the namespace's name has several
        layouts.
        """
        keys = block_pb2.BlockKeys(
            hash_bytes=len(hashes[0]), hashes=b"".join(hashes), group=group, shard=shard
        )
        request = pb.ExplainBlocksRequest(namespace=namespace, keys=keys)
        answer: pb.ExplainBlocksResponse = self._call("ExplainBlocks", request)
        return answer

    def record_requests(
        self, namespace: str = "", duration_seconds: float | None = None
    ) -> Generator[pb.RecordedRequest]:
        """What workers ask for from now on, until the generator is closed; returns when the agent
        has begun.

        After the duration DeadlineExceededError is raised.
        """
        request = pb.RecordRequestsRequest(namespace=namespace)
        requests = self._service.stream("RecordRequests", request, duration_seconds)
        next(requests)
        return requests

    def watch_events(
        self, request: cache_events_pb2.WatchEventsRequest
    ) -> Generator[cache_events_pb2.WatchEventsResponse]:
        """Changes of residency, until the generator is closed; see `kvtier.client.events`."""
        with EventsClient(self._address) as client:
            yield from client.watch(request)

    def create_pin(
        self,
        namespace: str,
        hashes: Sequence[bytes],
        ttl_seconds: float,
        *,
        reason: str = "",
        group: int = 0,
        shard: int = 0,
        timeout_seconds: float = _LONG_TIMEOUT_SECONDS,
    ) -> pb.Pin:
        """Keeps what is cached of these blocks from eviction; brings it to HOST before.

        All hashes have the same length. OverloadedError past the quota of pins, NotFoundError if
        nothing of it is cached.
        """
        request = pb.CreatePinRequest(
            namespace=namespace, keys=_keys(hashes, group, shard), reason=reason
        )
        request.ttl.FromNanoseconds(int(ttl_seconds * 1e9))
        answer: pb.Pin = self._service.call("CreatePin", request, timeout_seconds)
        return answer

    def delete_pin(self, pin_id: str) -> None:
        """NotFoundError if it has ended."""
        self._call("DeletePin", pb.DeletePinRequest(pin_id=pin_id))

    def list_pins(self, namespace: str = "") -> list[pb.Pin]:
        """All of them, or those of the namespaces that `tenant/name` names; the oldest first."""
        request = pb.ListPinsRequest(namespace=namespace, page_size=_PAGE)
        return self._pages("ListPins", request, "pins")

    def warm(
        self, namespace: str, hashes: Sequence[bytes], group: int = 0, shard: int = 0
    ) -> pb.WarmPrefixResponse:
        """Begins to bring a prefix to HOST: how much of it is accepted, and how much is there.

        Asking again says how far it is. All hashes have the same length.
        """
        size = len(hashes[0]) if hashes else 0
        keys = block_pb2.BlockKeys(
            hash_bytes=size, hashes=b"".join(hashes), group=group, shard=shard
        )
        request = pb.WarmPrefixRequest(namespace=namespace, keys=keys)
        answer: pb.WarmPrefixResponse = self._call("WarmPrefix", request)
        return answer

    def invalidate(
        self, namespace: str, timeout_seconds: float = _LONG_TIMEOUT_SECONDS
    ) -> pb.InvalidateNamespaceResponse:
        """Makes all that these namespaces hold unreachable, in every tier and for good."""
        request = pb.InvalidateNamespaceRequest(namespace=namespace)
        answer: pb.InvalidateNamespaceResponse = self._service.call(
            "InvalidateNamespace", request, timeout_seconds
        )
        return answer

    def flush(self, tier: Tier = Tier.DISK, timeout_seconds: float = _LONG_TIMEOUT_SECONDS) -> int:
        """Returns when all that was stored before is on the tier; the bytes written for this."""
        answer = self._service.call(
            "FlushTier", pb.FlushTierRequest(tier=_name(tier)), timeout_seconds
        )
        flushed_bytes: int = answer.flushed_bytes
        return flushed_bytes

    def scrub(self, tier: Tier = Tier.DISK, rate_bytes: int = 0) -> Generator[pb.ScrubProgress]:
        """Verifies a tier, at most so many bytes a second (0: as configured).

        The last progress has `done`. Closing the generator ends the scrub.
        """
        request = pb.ScrubTierRequest(tier=_name(tier), rate_limit_bytes=rate_bytes)
        return self._service.stream("ScrubTier", request)

    def drain(self, grace_seconds: float) -> Generator[pb.DrainProgress]:
        """Has the agent end its work; leases are revoked after the grace period.

        The last progress has `done`. Closing the generator changes nothing: see `resume`.
        """
        request = pb.DrainAgentRequest()
        request.grace_period.FromNanoseconds(int(grace_seconds * 1e9))
        return self._service.stream("DrainAgent", request)

    def resume(self) -> None:
        """The agent takes work again."""
        self._call("ResumeAgent", pb.ResumeAgentRequest())

    def is_ready(self) -> bool:
        """Whether the agent says that it takes work; as probes ask it."""
        from grpc_health.v1 import health_pb2

        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        request = health_pb2.HealthCheckRequest(service="ready")
        with closing(Service(self._address, health)) as service:
            answer = service.call("Check", request, self._timeout_seconds)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _call(self, method: str, request: Any) -> Any:
        return self._service.call(method, request, self._timeout_seconds)

    def _pages(self, method: str, request: Any, field: str) -> list[Any]:
        """This field of all pages; the request is changed."""
        found: list[Any] = []
        while True:
            answer = self._call(method, request)
            found.extend(getattr(answer, field))
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def close(self) -> None:
        self._service.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _keys(hashes: Sequence[bytes], group: int, shard: int) -> block_pb2.BlockKeys:
    return block_pb2.BlockKeys(
        hash_bytes=len(hashes[0]) if hashes else 0,
        hashes=b"".join(hashes),
        group=group,
        shard=shard,
    )


def _name(tier: Tier) -> str:
    """As the proto spells it."""
    return f"TIER_{tier.name}"

"""The operator's client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kvtier.client.service import Service
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_admin_pb2 as pb

_PAGE = 1000


class AdminClient:
    """Calls one agent's CacheAdmin. A context manager. Methods raise KvtierErrors."""

    def __init__(self, address: str, timeout_seconds: float = 5.0) -> None:
        self._service = Service(address, pb.DESCRIPTOR.services_by_name["CacheAdmin"])
        self._timeout_seconds = timeout_seconds

    def get_stats(self, namespace: str = "") -> pb.Stats:
        """Now; of all namespaces, or of those that `tenant/name` names."""
        answer: pb.Stats = self._call("GetStats", pb.GetStatsRequest(namespace=namespace))
        return answer

    def watch_stats(self, namespace: str = "", interval_seconds: float = 1.0) -> Iterator[pb.Stats]:
        """At an interval, until the iterator is closed."""
        request = pb.WatchStatsRequest(namespace=namespace)
        request.interval.FromNanoseconds(int(interval_seconds * 1e9))
        return self._service.stream("WatchStats", request)

    def list_sessions(self) -> list[pb.Session]:
        sessions: list[pb.Session] = []
        request = pb.ListSessionsRequest(page_size=_PAGE)
        while True:
            answer = self._call("ListSessions", request)
            sessions.extend(answer.sessions)
            if not answer.next_page_token:
                return sessions
            request.page_token = answer.next_page_token

    def list_namespaces(self) -> list[pb.NamespaceInfo]:
        namespaces: list[pb.NamespaceInfo] = []
        request = pb.ListNamespacesRequest(page_size=_PAGE)
        while True:
            answer = self._call("ListNamespaces", request)
            namespaces.extend(answer.namespaces)
            if not answer.next_page_token:
                return namespaces
            request.page_token = answer.next_page_token

    def evict_blocks(
        self,
        namespace: str,
        hashes: Sequence[bytes] = (),
        group: int = 0,
        shard: int = 0,
        validate_only: bool = False,
    ) -> pb.EvictBlocksResponse:
        """Evicts these blocks and what continues them; without hashes, the whole namespace.

        All hashes have the same length.
        """
        request = pb.EvictBlocksRequest(namespace=namespace, validate_only=validate_only)
        if hashes:
            request.keys.CopyFrom(
                block_pb2.BlockKeys(
                    hash_bytes=len(hashes[0]), hashes=b"".join(hashes), group=group, shard=shard
                )
            )
        answer: pb.EvictBlocksResponse = self._call("EvictBlocks", request)
        return answer

    def _call(self, method: str, request: Any) -> Any:
        return self._service.call(method, request, self._timeout_seconds)

    def close(self) -> None:
        self._service.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

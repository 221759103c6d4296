"""The verbs of a worker on an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvtier.client.arrays import rows_of
from kvtier.client.requests import (
    START,
    Lookup,
    Place,
    block_bytes_of,
    duration,
    keys_message,
    lookup_of,
    lookup_request,
)
from kvtier.client.streaming import asking, loading, storing
from kvtier.core.block import Match
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import InvalidRequestError
from kvtier.v1 import block_cache_pb2 as pb

if TYPE_CHECKING:
    from kvtier.client.async_client import AsyncClient


class AsyncNamespace:
    """One namespace of an agent, for one worker: the verbs of `Namespace`, with the same results.

    `load` and `reserve` need shared memory, and are not here. A call that is cancelled, or fails,
    leaves nothing at the agent; `out` may have been written to.
    """

    def __init__(self, client: AsyncClient, spec: NamespaceSpec) -> None:
        self._client = client
        self.spec = spec

    async def lookup(
        self,
        hashes: Sequence[bytes],
        *,
        place: Place = START,
        match: Match = Match.PREFIX,
        shards: Sequence[int] = (),
        hold_seconds: float = 0.0,
        compute_seconds_per_block: float = 0.0,
        request_id: str = "",
    ) -> Lookup:
        """How much of a sequence is cached."""
        if not hashes:
            return Lookup(0)
        request = lookup_request(
            hashes,
            place,
            match,
            shards,
            hold_seconds,
            compute_seconds_per_block,
            request_id=request_id,
        )
        return lookup_of(await self._call("LookupPrefix", request), len(hashes))

    async def load_into(
        self, hashes: Sequence[bytes], out: Any, *, place: Place = START, hold_id: int = 0
    ) -> list[int]:
        """Copies blocks into the caller's arrays or CPU tensors; one BlockStatus per key.

        The loop is kept for the length of a copy, some 0.3 ms, at each message of 1 MiB.
        """
        rows = rows_of(out, len(hashes), block_bytes_of(self.spec, place))
        if not all(row.flags.writeable for row in rows):
            raise InvalidRequestError("out is read-only")
        return await self._client.run(self.spec, loading(self.spec, hashes, rows, place, hold_id))

    async def store(
        self, hashes: Sequence[bytes], blocks: Any, *, place: Place = START
    ) -> list[int]:
        """Copies blocks in; one BlockStatus per key."""
        rows = rows_of(blocks, len(hashes), block_bytes_of(self.spec, place))
        return await self._client.run(self.spec, storing(self.spec, hashes, rows, place))

    async def prefetch(self, hashes: Sequence[bytes], *, place: Place = START) -> int:
        """Asks for a prefix to be in HOST; how many leading blocks are, or will be."""
        request = pb.PrefetchPrefixRequest(keys=keys_message(hashes, place))
        answer = await self._call("PrefetchPrefix", request)
        accepted: int = answer.accepted_count
        return accepted

    async def touch(self, hashes: Sequence[bytes], *, place: Place = START) -> None:
        """Says that blocks were used which the engine had itself."""
        await self._call("TouchBlocks", pb.TouchBlocksRequest(keys=keys_message(hashes, place)))

    async def renew(self, ttl_seconds: float = 0.0) -> int:
        """Keeps this worker's session of the namespace; how many leases of it live."""
        request = pb.RenewLeasesRequest(ttl=duration(ttl_seconds))
        return len((await self._call("RenewLeases", request)).leases)

    async def _call(self, method: str, request: Any) -> Any:
        return await self._client.run(self.spec, asking(method, request))

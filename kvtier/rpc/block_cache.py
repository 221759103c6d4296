"""The BlockCache service: what a worker calls on the request path."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kvtier.access.credential import LOCAL
from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.operating.seen_requests import SeenLookup, SeenRequests
from kvtier.agent.serving.admission import Admission, Work
from kvtier.agent.serving.loading import Found, Loading
from kvtier.agent.serving.storing import DIGEST_BYTES, Storing
from kvtier.agent.sessions.grants import Granted, Grants
from kvtier.agent.sessions.sessions import Session, Sessions
from kvtier.agent.sessions.stream_sessions import require_shared_memory
from kvtier.agent.tiers.device import Device
from kvtier.agent.tiers.gpu import Gpu
from kvtier.agent.turns import data_line
from kvtier.core.block import BlockKeys, Lane, Match, Tier, Wait
from kvtier.core.block_stream import MAX_MESSAGE_BYTES
from kvtier.core.lease import Lease
from kvtier.errors import InvalidRequestError, UnauthenticatedError
from kvtier.rpc import conversion as convert
from kvtier.rpc.block_streams import BlockStreams
from kvtier.rpc.server import Call, patience_seconds
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

_MAX_WORKER_BYTES = 256


@dataclass(frozen=True)
class Identity:
    """What GetCapabilities answers."""

    epoch: int
    version: str
    max_batch_blocks: int
    attach_socket: str


class BlockCacheService:
    """Translates; the verbs are in `agent.serving.loading` and `agent.serving.storing`."""

    def __init__(
        self,
        identity: Identity,
        sessions: Sessions,
        grants: Grants,
        loading: Loading,
        storing: Storing,
        streams: BlockStreams,
        lifecycle: Lifecycle,
        tiers: Sequence[Tier],
        admission: Admission,
        seen: SeenRequests | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        self._identity = identity
        self._sessions = sessions
        self._grants = grants
        self._loading = loading
        self._storing = storing
        self._streams = streams
        self._lifecycle = lifecycle
        self._tiers = tiers
        self._admission = admission
        self._seen = seen
        self._gpu = gpu

    async def GetCapabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        self._lifecycle.require_serving()
        return pb.GetCapabilitiesResponse(
            epoch=self._identity.epoch,
            max_batch_blocks=self._identity.max_batch_blocks,
            max_lease_ttl=convert.duration(self._grants.limits.max_seconds),
            attach_socket=self._identity.attach_socket if call.caller is LOCAL else "",
            tiers=self._tiers,  # type: ignore[arg-type]
            version=self._identity.version,
            max_chunk_bytes=MAX_MESSAGE_BYTES,
            session_ttl=convert.duration(self._streams.sessions.ttl_seconds),
        )

    async def OpenSession(
        self, request: pb.OpenSessionRequest, call: Call
    ) -> pb.OpenSessionResponse:
        self._lifecycle.require_serving()
        if len(request.worker.encode()) > _MAX_WORKER_BYTES:
            raise InvalidRequestError(f"worker is longer than {_MAX_WORKER_BYTES} bytes")
        spec = convert.spec_from(request.namespace)
        if not request.attach_token:
            session, differences = self._streams.sessions.open(spec, request.worker, call.caller)
        elif call.caller is LOCAL:
            session, differences = self._sessions.open(request.attach_token, spec, request.worker)
        else:
            raise UnauthenticatedError("attach_token is for calls on the agent's own node")
        return pb.OpenSessionResponse(
            session_token=session.token,
            epoch=self._identity.epoch,
            layout_digest=session.namespace.spec.layout_digest,
            sibling_differences=differences,
        )

    async def LookupPrefix(
        self, request: pb.LookupPrefixRequest, call: Call
    ) -> pb.LookupPrefixResponse:
        session = self._working_session(call)
        _note_speed(session, request.compute_seconds_per_block)
        entries = self._entries(session, request.keys)
        shards = self._shards(session, request.shards, entries)
        if request.match not in (0, *Match):
            raise InvalidRequestError(f"match is {request.match}; it must be PREFIX or PRESENCE")
        match = Match(request.match or Match.PREFIX)
        found, hold_id = await self._loading.lookup(
            session,
            entries,
            match=match,
            tiers=convert.tiers_from(request.tiers, "tiers"),
            shards=shards,
            hold_seconds=convert.seconds_from(request.hold, "hold"),
            prefetch=request.prefetch,
        )
        if self._seen is not None and request.request_id:
            for keys, each in zip(request.keys, found, strict=True):
                lookup = _seen_lookup(keys, each)
                self._seen.note(session.namespace, request.request_id, lookup)
        response = pb.LookupPrefixResponse(hold_id=hold_id)
        for each in found:
            answer = response.found.add(matched_count=each.matched)
            for run in each.runs:
                answer.runs.append(convert.run_message(run))
            if match is Match.PRESENCE:
                answer.presence = convert.presence_bits(each.presence)
        return response

    async def LoadBlocks(self, request: pb.LoadBlocksRequest, call: Call) -> pb.LoadBlocksResponse:
        session = self._working_session(call)
        require_shared_memory(session)
        _note_speed(session, request.compute_seconds_per_block)
        self._release(session, request.release)
        if int(request.wait) not in set(map(int, Wait)):
            raise InvalidRequestError("wait is unset; it must be BEST_EFFORT, ALL or BREAK_EVEN")
        if request.wait == request.BREAK_EVEN and not session.compute_seconds_per_block:
            raise InvalidRequestError(
                "compute_seconds_per_block is unset, and no call of this session has said it yet; "
                "BREAK_EVEN compares with it what loading takes"
            )
        entries = self._entries(session, request.keys)
        async with self._moving(Work.LOAD, session, entries):
            granted = await self._loading.load(
                session,
                entries,
                wait=Wait(request.wait),
                patience_seconds=patience_seconds(call),
                stop_at_gap=request.stop_at_gap,
                ttl_seconds=convert.seconds_from(request.ttl, "ttl"),
                hold_id=request.hold_id,
                compute_seconds_per_block=session.compute_seconds_per_block,
                lease_count=request.lease_count,
                device=self._device(session) if request.accept_device_slots else None,
            )
        return pb.LoadBlocksResponse(
            lease=self._granted_lease(granted),
            status=granted.statuses,  # type: ignore[arg-type]
            slots=convert.slots_message(granted),
            source=granted.sources,  # type: ignore[arg-type]
        )

    async def ReserveBlocks(
        self, request: pb.ReserveBlocksRequest, call: Call
    ) -> pb.ReserveBlocksResponse:
        session = self._working_session(call)
        require_shared_memory(session)
        self._release(session, request.release)
        entries = self._entries(session, request.keys)
        convert.check_parents(entries)
        total = sum(len(keys.hashes) for keys in entries)
        self._check_length("breakpoints", len(request.breakpoints))
        if any(index >= total for index in request.breakpoints):
            raise InvalidRequestError(f"breakpoints names an index beyond the {total} keys")
        async with self._moving(Work.STORE, session, entries):
            granted = await self._storing.reserve(
                session,
                entries,
                ttl_seconds=convert.seconds_from(request.ttl, "ttl"),
                patience_seconds=patience_seconds(call),
                breakpoints=request.breakpoints,
            )
        return pb.ReserveBlocksResponse(
            reservation=self._granted_lease(granted),
            status=granted.statuses,  # type: ignore[arg-type]
            slots=convert.slots_message(granted),
        )

    async def CommitBlocks(
        self, request: pb.CommitBlocksRequest, call: Call
    ) -> pb.CommitBlocksResponse:
        self._check_length("indexes", len(request.indexes))
        session = self._session(call)
        require_shared_memory(session)
        await data_line().begin()
        statuses = await self._storing.commit(
            session,
            request.reservation_id,
            request.indexes,
            convert.digests_from(request.digests, DIGEST_BYTES),
        )
        return pb.CommitBlocksResponse(status=statuses)  # type: ignore[arg-type]

    async def RenewLeases(
        self, request: pb.RenewLeasesRequest, call: Call
    ) -> pb.RenewLeasesResponse:
        session = self._session(call)
        seconds = convert.seconds_from(request.ttl, "ttl")
        self._check_length("lease_ids", len(request.lease_ids))
        renewed = self._grants.renew(session, list(request.lease_ids), seconds)
        return pb.RenewLeasesResponse(leases=[self._lease(each) for each in renewed])

    async def ReleaseLeases(
        self, request: pb.ReleaseLeasesRequest, call: Call
    ) -> pb.ReleaseLeasesResponse:
        self._release(self._session(call), request.lease_ids)
        return pb.ReleaseLeasesResponse()

    def ReadBlocks(self, request: pb.ReadBlocksRequest, call: Call) -> AsyncGenerator[bytes]:
        session = self._working_session(call)
        [keys] = self._entries(session, [request.keys])
        return self._streams.read(session, keys, request, call)

    async def WriteBlocks(
        self, messages: AsyncIterator[bytes], call: Call
    ) -> pb.WriteBlocksResponse:
        session = self._working_session(call)
        return await self._streams.write(
            session, messages, call, lambda keys: self._entries(session, [keys])[0]
        )

    async def PrefetchPrefix(
        self, request: pb.PrefetchPrefixRequest, call: Call
    ) -> pb.PrefetchPrefixResponse:
        session = self._working_session(call)
        if request.target not in (block_pb2.TIER_UNSPECIFIED, block_pb2.TIER_HOST):
            raise InvalidRequestError(
                "target must be TIER_HOST; what comes to a device, its policy decides"
            )
        [keys] = self._entries(session, [request.keys])
        async with self._moving(Work.PREFETCH, session, [keys]):
            accepted = await self._loading.prefetch(session, keys)
        return pb.PrefetchPrefixResponse(accepted_count=accepted)

    async def TouchBlocks(
        self, request: pb.TouchBlocksRequest, call: Call
    ) -> pb.TouchBlocksResponse:
        session = self._working_session(call)
        for keys in self._entries(session, [request.keys]):
            await self._loading.touch(session, keys)
        return pb.TouchBlocksResponse()

    def _device(self, session: Session) -> Device | None:
        return self._gpu.device_of(session) if self._gpu is not None else None

    @asynccontextmanager
    async def _moving(
        self, work: Work, session: Session, entries: Sequence[BlockKeys]
    ) -> AsyncIterator[None]:
        """Work on these blocks, for which there is room now, from its first turn on."""
        count = sum(len(keys.hashes) for keys in entries)
        block_bytes = session.namespace.spec.block_bytes
        size_bytes = sum(len(keys.hashes) * block_bytes[keys.lane.group] for keys in entries)
        with self._admission.blocks(work, session.token, count, size_bytes):
            await data_line().begin()
            yield

    def _working_session(self, call: Call) -> Session:
        """For calls that begin something; those that end something are taken while draining."""
        self._lifecycle.require_serving()
        return self._session(call)

    def _session(self, call: Call) -> Session:
        if call.session_token is None:
            raise UnauthenticatedError(
                "metadata kvtier-session-bin is missing: call OpenSession, and send its "
                "session_token"
            )
        session = self._sessions.find(call.session_token)
        owner = session.attachment.caller
        if owner is not call.caller:
            owner.require_same(call.caller)
            call.caller.scope.require(session.namespace.spec.tenant, session.namespace.spec.name)
        self._streams.sessions.renew(session)
        return session

    def _entries(self, session: Session, keys: Sequence[block_pb2.BlockKeys]) -> list[BlockKeys]:
        return convert.entries_from(keys, session.namespace, self._identity.max_batch_blocks)

    def _shards(
        self, session: Session, numbers: Sequence[int], entries: Sequence[BlockKeys]
    ) -> list[int]:
        """Distinct; together with the keys no more work than a batch without shards."""
        shards = list(dict.fromkeys(numbers[: session.namespace.spec.shards + 1]))
        for shard in shards:
            convert.check_shard(shard, session.namespace, "shards")
        keys = sum(len(each.hashes) for each in entries)
        self._check_length("shards", len(numbers) * keys, "shards times keys")
        return shards

    def _check_length(self, name: str, length: int, what: str = "entries") -> None:
        limit = self._identity.max_batch_blocks
        if length > limit:
            raise InvalidRequestError(
                f"{name}: {length} {what}; at most {limit} (GetCapabilities.max_batch_blocks)"
            )

    def _release(self, session: Session, lease_ids: Sequence[int]) -> None:
        self._check_length("leases to release", len(lease_ids))
        for lease_id in lease_ids:
            self._grants.release_by_id(session, lease_id)

    def _granted_lease(self, granted: Granted) -> block_pb2.Lease | None:
        return self._lease(granted.lease) if granted.lease.size_bytes else None

    def _lease(self, lease: Lease) -> block_pb2.Lease:
        seconds = self._grants.leases.remaining_seconds(lease)
        return block_pb2.Lease(
            lease_id=lease.lease_id,
            epoch=self._identity.epoch,
            ttl=convert.duration(seconds),
            expire_time=convert.timestamp(time.time() + seconds),
        )


def _seen_lookup(keys: block_pb2.BlockKeys, found: Found) -> SeenLookup:
    """For operators; a prefix's `presence` ends with it."""
    tiers = Counter[Tier]()
    for run in found.runs:
        tiers[run.tier] += run.count
    return SeenLookup(
        Lane(keys.group, keys.shard),
        keys.hash_bytes,
        keys.hashes,
        keys.parent_hash,
        keys.position,
        sum(found.presence),
        tiers,
    )


def _note_speed(session: Session, seconds: float) -> None:
    """Keeps what a call says it takes the worker to compute a block; 0 says nothing."""
    if not 0 <= seconds < math.inf:
        raise InvalidRequestError(
            f"compute_seconds_per_block is {seconds}; it must be a number that is not negative"
        )
    if seconds:
        session.compute_seconds_per_block = seconds
        session.namespace.usage.compute_seconds_per_block = seconds

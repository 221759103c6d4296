"""Requests that are right, of every method: what mutations begin with."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from kvtier import NamespaceSpec
from kvtier.core.capacity import MOST_DISK_BYTES
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_admin_pb2 as admin_pb
from tests.faults.blocks import KIB, hashes_of
from tests.faults.raw_worker import keys_message, spec_message

SPEC: Final = NamespaceSpec(name="fuzz", block_bytes=(4 * KIB, 8 * KIB), shards=2)
BLOCK_CACHE: Final = pb.DESCRIPTOR.services_by_name["BlockCache"]
CACHE_ADMIN: Final = admin_pb.DESCRIPTOR.services_by_name["CacheAdmin"]
#: Of a sequence that the fuzzer itself may store.
_SEQUENCES = 8
_MOST_KEYS = 24
_MOST_BYTES = 256 << 20


def is_greedy(method: str, data: bytes) -> bool:
    """Whether it would rightly let a tier take much of this machine."""
    if method != "ResizeTier":
        return False
    try:
        wanted = admin_pb.ResizeTierRequest.FromString(data).capacity_bytes
    except DecodeError:
        return False
    return _MOST_BYTES < wanted <= MOST_DISK_BYTES


class Requests:
    """By method; keys, ids and tokens are such as the agent may know."""

    def __init__(self, random: Random) -> None:
        self._random = random
        #: Of leases, holds and reservations that were answered.
        self.lease_ids: list[int] = [1]
        self.attach_token = b""

    def of(self, method: str) -> Message:
        """Another one each time."""
        make: Any = getattr(self, f"_{method}", None)
        if make is not None:
            request: Message = make()
            return request
        service = BLOCK_CACHE if method in BLOCK_CACHE.methods_by_name else CACHE_ADMIN
        kind: Any = service.methods_by_name[method].input_type._concrete_class
        empty: Message = kind()
        for name, value in {"namespace": "default/fuzz", "page_size": 5}.items():
            if name in empty.DESCRIPTOR.fields_by_name:
                setattr(empty, name, value)
        return empty

    def note(self, answer: Any) -> None:
        """Ids of what was granted."""
        for name in ("lease", "reservation"):
            lease_id = getattr(getattr(answer, name, None), "lease_id", 0)
            if lease_id:
                self.lease_ids = [*self.lease_ids[-30:], lease_id]
        if getattr(answer, "hold_id", 0):
            self.lease_ids = [*self.lease_ids[-30:], answer.hold_id]

    def keys(self) -> block_pb2.BlockKeys:
        sequence = f"fuzz {self._random.randrange(_SEQUENCES)}"
        hashes = hashes_of(sequence, self._random.randint(1, _MOST_KEYS))
        group, shard = self._random.randrange(2), self._random.randrange(2)
        return keys_message(hashes, group=group, shard=shard)

    def _lease_id(self) -> int:
        return self._random.choice(self.lease_ids)

    def _OpenSession(self) -> Message:  # noqa: N802
        return pb.OpenSessionRequest(
            namespace=spec_message(SPEC), attach_token=self.attach_token, worker="fuzz"
        )

    def _LookupPrefix(self) -> Message:  # noqa: N802
        return pb.LookupPrefixRequest(
            keys=[self.keys()],
            shards=[0, 1],
            match=self._random.randrange(3),  # type: ignore[arg-type]
            hold=Duration(nanos=1000000),
            prefetch=True,
        )

    def _LoadBlocks(self) -> Message:  # noqa: N802
        return pb.LoadBlocksRequest(
            keys=[self.keys()],
            wait=self._random.randint(1, 3),  # type: ignore[arg-type]
            hold_id=self._lease_id(),
            release=[self._lease_id()],
            ttl=Duration(nanos=5000000),
            compute_seconds_per_block=0.001,
        )

    def _ReserveBlocks(self) -> Message:  # noqa: N802
        return pb.ReserveBlocksRequest(
            keys=[self.keys()],
            release=[self._lease_id()],
            ttl=Duration(nanos=5000000),
            breakpoints=[0],
        )

    def _CommitBlocks(self) -> Message:  # noqa: N802
        return pb.CommitBlocksRequest(
            reservation_id=self._lease_id(), indexes=[0, 1], digests=bytes(32)
        )

    def _RenewLeases(self) -> Message:  # noqa: N802
        return pb.RenewLeasesRequest(lease_ids=[self._lease_id()], ttl=Duration(nanos=5000000))

    def _ReleaseLeases(self) -> Message:  # noqa: N802
        return pb.ReleaseLeasesRequest(lease_ids=[self._lease_id()])

    def _PrefetchPrefix(self) -> Message:  # noqa: N802
        return pb.PrefetchPrefixRequest(keys=self.keys())

    def _TouchBlocks(self) -> Message:  # noqa: N802
        return pb.TouchBlocksRequest(keys=self.keys())

    def _ReadBlocks(self) -> Message:  # noqa: N802
        return pb.ReadBlocksRequest(
            keys=self.keys(), start_offset=16, wait="BEST_EFFORT", hold_id=self._lease_id()
        )

    def _WriteBlocks(self) -> Message:  # noqa: N802
        return pb.WriteBlocksRequest(keys=self.keys(), data=bytes(4096), digests=bytes(16))

    def _EvictBlocks(self) -> Message:  # noqa: N802
        return admin_pb.EvictBlocksRequest(
            namespace="default/fuzz", keys=self.keys(), tiers=[block_pb2.TIER_HOST]
        )

    def _CreatePin(self) -> Message:  # noqa: N802
        return admin_pb.CreatePinRequest(
            namespace="default/fuzz", keys=self.keys(), ttl=Duration(nanos=1000000), reason="fuzz"
        )

    def _DeletePin(self) -> Message:  # noqa: N802
        return admin_pb.DeletePinRequest(pin_id=f"{self._random.getrandbits(64):016x}")

    def _ResizeTier(self) -> Message:  # noqa: N802
        return admin_pb.ResizeTierRequest(tier=block_pb2.TIER_HOST, capacity_bytes=16 << 20)

    def _ExplainBlocks(self) -> Message:  # noqa: N802
        return admin_pb.ExplainBlocksRequest(namespace="default/fuzz", keys=self.keys())

    def _WarmPrefix(self) -> Message:  # noqa: N802
        return admin_pb.WarmPrefixRequest(namespace="default/fuzz", keys=self.keys())

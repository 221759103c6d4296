import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from kvtier.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("epoch", "max_batch_blocks", "max_chunk_bytes", "max_lease_ttl", "attach_socket", "tiers", "version", "session_ttl")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    ATTACH_SOCKET_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_TTL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    max_batch_blocks: int
    max_chunk_bytes: int
    max_lease_ttl: _duration_pb2.Duration
    attach_socket: str
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    version: str
    session_ttl: _duration_pb2.Duration
    def __init__(self, epoch: _Optional[int] = ..., max_batch_blocks: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., max_lease_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., attach_socket: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., version: _Optional[str] = ..., session_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("namespace", "attach_token", "worker")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ATTACH_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    namespace: _block_pb2.NamespaceSpec
    attach_token: bytes
    worker: str
    def __init__(self, namespace: _Optional[_Union[_block_pb2.NamespaceSpec, _Mapping]] = ..., attach_token: _Optional[bytes] = ..., worker: _Optional[str] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session_token", "epoch", "layout_digest", "sibling_differences")
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIBLING_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    session_token: bytes
    epoch: int
    layout_digest: bytes
    sibling_differences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_token: _Optional[bytes] = ..., epoch: _Optional[int] = ..., layout_digest: _Optional[bytes] = ..., sibling_differences: _Optional[_Iterable[str]] = ...) -> None: ...

class LookupPrefixRequest(_message.Message):
    __slots__ = ("keys", "match", "tiers", "shards", "prefetch", "hold", "compute_seconds_per_block", "request_id")
    class Match(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MATCH_UNSPECIFIED: _ClassVar[LookupPrefixRequest.Match]
        PREFIX: _ClassVar[LookupPrefixRequest.Match]
        PRESENCE: _ClassVar[LookupPrefixRequest.Match]
    MATCH_UNSPECIFIED: LookupPrefixRequest.Match
    PREFIX: LookupPrefixRequest.Match
    PRESENCE: LookupPrefixRequest.Match
    KEYS_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockKeys]
    match: LookupPrefixRequest.Match
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    shards: _containers.RepeatedScalarFieldContainer[int]
    prefetch: bool
    hold: _duration_pb2.Duration
    compute_seconds_per_block: float
    request_id: str
    def __init__(self, keys: _Optional[_Iterable[_Union[_block_pb2.BlockKeys, _Mapping]]] = ..., match: _Optional[_Union[LookupPrefixRequest.Match, str]] = ..., tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., shards: _Optional[_Iterable[int]] = ..., prefetch: bool = ..., hold: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute_seconds_per_block: _Optional[float] = ..., request_id: _Optional[str] = ...) -> None: ...

class LookupPrefixResponse(_message.Message):
    __slots__ = ("found", "hold_id")
    class Found(_message.Message):
        __slots__ = ("matched_count", "runs", "presence")
        MATCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
        RUNS_FIELD_NUMBER: _ClassVar[int]
        PRESENCE_FIELD_NUMBER: _ClassVar[int]
        matched_count: int
        runs: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockRun]
        presence: bytes
        def __init__(self, matched_count: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[_block_pb2.BlockRun, _Mapping]]] = ..., presence: _Optional[bytes] = ...) -> None: ...
    FOUND_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedCompositeFieldContainer[LookupPrefixResponse.Found]
    hold_id: int
    def __init__(self, found: _Optional[_Iterable[_Union[LookupPrefixResponse.Found, _Mapping]]] = ..., hold_id: _Optional[int] = ...) -> None: ...

class LoadBlocksRequest(_message.Message):
    __slots__ = ("keys", "wait", "compute_seconds_per_block", "stop_at_gap", "ttl", "hold_id", "accept_device_slots", "release", "lease_count")
    class Wait(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAIT_UNSPECIFIED: _ClassVar[LoadBlocksRequest.Wait]
        BEST_EFFORT: _ClassVar[LoadBlocksRequest.Wait]
        ALL: _ClassVar[LoadBlocksRequest.Wait]
        BREAK_EVEN: _ClassVar[LoadBlocksRequest.Wait]
    WAIT_UNSPECIFIED: LoadBlocksRequest.Wait
    BEST_EFFORT: LoadBlocksRequest.Wait
    ALL: LoadBlocksRequest.Wait
    BREAK_EVEN: LoadBlocksRequest.Wait
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    STOP_AT_GAP_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_DEVICE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockKeys]
    wait: LoadBlocksRequest.Wait
    compute_seconds_per_block: float
    stop_at_gap: bool
    ttl: _duration_pb2.Duration
    hold_id: int
    accept_device_slots: bool
    release: _containers.RepeatedScalarFieldContainer[int]
    lease_count: int
    def __init__(self, keys: _Optional[_Iterable[_Union[_block_pb2.BlockKeys, _Mapping]]] = ..., wait: _Optional[_Union[LoadBlocksRequest.Wait, str]] = ..., compute_seconds_per_block: _Optional[float] = ..., stop_at_gap: bool = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hold_id: _Optional[int] = ..., accept_device_slots: bool = ..., release: _Optional[_Iterable[int]] = ..., lease_count: _Optional[int] = ...) -> None: ...

class LoadBlocksResponse(_message.Message):
    __slots__ = ("lease", "status", "slots", "source")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    lease: _block_pb2.Lease
    status: _containers.RepeatedScalarFieldContainer[_block_pb2.BlockStatus]
    slots: _block_pb2.Slots
    source: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    def __init__(self, lease: _Optional[_Union[_block_pb2.Lease, _Mapping]] = ..., status: _Optional[_Iterable[_Union[_block_pb2.BlockStatus, str]]] = ..., slots: _Optional[_Union[_block_pb2.Slots, _Mapping]] = ..., source: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ...) -> None: ...

class ReserveBlocksRequest(_message.Message):
    __slots__ = ("keys", "ttl", "breakpoints", "release")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    BREAKPOINTS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockKeys]
    ttl: _duration_pb2.Duration
    breakpoints: _containers.RepeatedScalarFieldContainer[int]
    release: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Iterable[_Union[_block_pb2.BlockKeys, _Mapping]]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., breakpoints: _Optional[_Iterable[int]] = ..., release: _Optional[_Iterable[int]] = ...) -> None: ...

class ReserveBlocksResponse(_message.Message):
    __slots__ = ("reservation", "status", "slots")
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    reservation: _block_pb2.Lease
    status: _containers.RepeatedScalarFieldContainer[_block_pb2.BlockStatus]
    slots: _block_pb2.Slots
    def __init__(self, reservation: _Optional[_Union[_block_pb2.Lease, _Mapping]] = ..., status: _Optional[_Iterable[_Union[_block_pb2.BlockStatus, str]]] = ..., slots: _Optional[_Union[_block_pb2.Slots, _Mapping]] = ...) -> None: ...

class CommitBlocksRequest(_message.Message):
    __slots__ = ("reservation_id", "indexes", "digests")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    reservation_id: int
    indexes: _containers.RepeatedScalarFieldContainer[int]
    digests: bytes
    def __init__(self, reservation_id: _Optional[int] = ..., indexes: _Optional[_Iterable[int]] = ..., digests: _Optional[bytes] = ...) -> None: ...

class CommitBlocksResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[_block_pb2.BlockStatus]
    def __init__(self, status: _Optional[_Iterable[_Union[_block_pb2.BlockStatus, str]]] = ...) -> None: ...

class RenewLeasesRequest(_message.Message):
    __slots__ = ("lease_ids", "ttl")
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    ttl: _duration_pb2.Duration
    def __init__(self, lease_ids: _Optional[_Iterable[int]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewLeasesResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[_block_pb2.Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[_block_pb2.Lease, _Mapping]]] = ...) -> None: ...

class ReleaseLeasesRequest(_message.Message):
    __slots__ = ("lease_ids",)
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseLeasesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadBlocksRequest(_message.Message):
    __slots__ = ("keys", "start_index", "start_offset", "wait", "stop_at_gap", "hold_id")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    START_INDEX_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    STOP_AT_GAP_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _block_pb2.BlockKeys
    start_index: int
    start_offset: int
    wait: LoadBlocksRequest.Wait
    stop_at_gap: bool
    hold_id: int
    def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., start_index: _Optional[int] = ..., start_offset: _Optional[int] = ..., wait: _Optional[_Union[LoadBlocksRequest.Wait, str]] = ..., stop_at_gap: bool = ..., hold_id: _Optional[int] = ...) -> None: ...

class ReadBlocksResponse(_message.Message):
    __slots__ = ("index", "offset", "data", "status", "digests")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    data: bytes
    status: _containers.RepeatedScalarFieldContainer[_block_pb2.BlockStatus]
    digests: bytes
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., status: _Optional[_Iterable[_Union[_block_pb2.BlockStatus, str]]] = ..., digests: _Optional[bytes] = ...) -> None: ...

class WriteBlocksRequest(_message.Message):
    __slots__ = ("index", "offset", "data", "digests", "keys")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    data: bytes
    digests: bytes
    keys: _block_pb2.BlockKeys
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., digests: _Optional[bytes] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class WriteBlocksResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _containers.RepeatedScalarFieldContainer[_block_pb2.BlockStatus]
    def __init__(self, status: _Optional[_Iterable[_Union[_block_pb2.BlockStatus, str]]] = ...) -> None: ...

class PrefetchPrefixRequest(_message.Message):
    __slots__ = ("keys", "target")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    keys: _block_pb2.BlockKeys
    target: _block_pb2.Tier
    def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., target: _Optional[_Union[_block_pb2.Tier, str]] = ...) -> None: ...

class PrefetchPrefixResponse(_message.Message):
    __slots__ = ("accepted_count",)
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    accepted_count: int
    def __init__(self, accepted_count: _Optional[int] = ...) -> None: ...

class TouchBlocksRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _block_pb2.BlockKeys
    def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class TouchBlocksResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

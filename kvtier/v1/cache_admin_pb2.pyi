import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kvtier.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TierStats(_message.Message):
    __slots__ = ("tier", "state", "capacity_bytes", "used_bytes", "block_count", "leased_bytes", "hit_count", "miss_count", "evicted_count", "corrupt_count", "queue_depth", "allocated_bytes", "quarantined_bytes", "stored_count", "refused_count", "lookup_count", "lookup_hit_count", "reason", "error_count", "promoted_count", "demoted_count", "unwritten_count", "pending_bytes", "read_bytes", "written_bytes", "pinned_bytes", "prefetched_count", "prefetch_used_count", "prefetch_wasted_count", "expired_count", "unadmitted_count", "written_last_day_bytes", "policy", "admission", "device", "read_seconds_per_mib", "distrusted_seconds", "crowded_out_count", "auto_least_bytes", "auto_most_bytes", "auto_shrunk_count", "auto_reason")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[TierStats.State]
        ACTIVE: _ClassVar[TierStats.State]
        DEGRADED: _ClassVar[TierStats.State]
        UNAVAILABLE: _ClassVar[TierStats.State]
        RECOVERING: _ClassVar[TierStats.State]
    STATE_UNSPECIFIED: TierStats.State
    ACTIVE: TierStats.State
    DEGRADED: TierStats.State
    UNAVAILABLE: TierStats.State
    RECOVERING: TierStats.State
    TIER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISS_COUNT_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEMOTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNWRITTEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFETCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_USED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_WASTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNADMITTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_LAST_DAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    READ_SECONDS_PER_MIB_FIELD_NUMBER: _ClassVar[int]
    DISTRUSTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CROWDED_OUT_COUNT_FIELD_NUMBER: _ClassVar[int]
    AUTO_LEAST_BYTES_FIELD_NUMBER: _ClassVar[int]
    AUTO_MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    AUTO_SHRUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    AUTO_REASON_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    state: TierStats.State
    capacity_bytes: int
    used_bytes: int
    block_count: int
    leased_bytes: int
    hit_count: int
    miss_count: int
    evicted_count: int
    corrupt_count: int
    queue_depth: int
    allocated_bytes: int
    quarantined_bytes: int
    stored_count: int
    refused_count: int
    lookup_count: int
    lookup_hit_count: int
    reason: str
    error_count: int
    promoted_count: int
    demoted_count: int
    unwritten_count: int
    pending_bytes: int
    read_bytes: int
    written_bytes: int
    pinned_bytes: int
    prefetched_count: int
    prefetch_used_count: int
    prefetch_wasted_count: int
    expired_count: int
    unadmitted_count: int
    written_last_day_bytes: int
    policy: str
    admission: str
    device: str
    read_seconds_per_mib: float
    distrusted_seconds: float
    crowded_out_count: int
    auto_least_bytes: int
    auto_most_bytes: int
    auto_shrunk_count: int
    auto_reason: str
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., state: _Optional[_Union[TierStats.State, str]] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., block_count: _Optional[int] = ..., leased_bytes: _Optional[int] = ..., hit_count: _Optional[int] = ..., miss_count: _Optional[int] = ..., evicted_count: _Optional[int] = ..., corrupt_count: _Optional[int] = ..., queue_depth: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ..., stored_count: _Optional[int] = ..., refused_count: _Optional[int] = ..., lookup_count: _Optional[int] = ..., lookup_hit_count: _Optional[int] = ..., reason: _Optional[str] = ..., error_count: _Optional[int] = ..., promoted_count: _Optional[int] = ..., demoted_count: _Optional[int] = ..., unwritten_count: _Optional[int] = ..., pending_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., written_bytes: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., prefetched_count: _Optional[int] = ..., prefetch_used_count: _Optional[int] = ..., prefetch_wasted_count: _Optional[int] = ..., expired_count: _Optional[int] = ..., unadmitted_count: _Optional[int] = ..., written_last_day_bytes: _Optional[int] = ..., policy: _Optional[str] = ..., admission: _Optional[str] = ..., device: _Optional[str] = ..., read_seconds_per_mib: _Optional[float] = ..., distrusted_seconds: _Optional[float] = ..., crowded_out_count: _Optional[int] = ..., auto_least_bytes: _Optional[int] = ..., auto_most_bytes: _Optional[int] = ..., auto_shrunk_count: _Optional[int] = ..., auto_reason: _Optional[str] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("pin_id", "namespace", "block_count", "expire_time", "reason", "pinned_bytes")
    PIN_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    pin_id: str
    namespace: str
    block_count: int
    expire_time: _timestamp_pb2.Timestamp
    reason: str
    pinned_bytes: int
    def __init__(self, pin_id: _Optional[str] = ..., namespace: _Optional[str] = ..., block_count: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., pinned_bytes: _Optional[int] = ...) -> None: ...

class CreatePinRequest(_message.Message):
    __slots__ = ("namespace", "keys", "ttl", "reason")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _block_pb2.BlockKeys
    ttl: _duration_pb2.Duration
    reason: str
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class DeletePinRequest(_message.Message):
    __slots__ = ("pin_id",)
    PIN_ID_FIELD_NUMBER: _ClassVar[int]
    pin_id: str
    def __init__(self, pin_id: _Optional[str] = ...) -> None: ...

class DeletePinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ("namespace", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("pins", "next_page_token")
    PINS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    next_page_token: str
    def __init__(self, pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ResizeTierRequest(_message.Message):
    __slots__ = ("tier", "capacity_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    capacity_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., capacity_bytes: _Optional[int] = ...) -> None: ...

class ResizeTierResponse(_message.Message):
    __slots__ = ("capacity_bytes", "allocated_bytes")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    allocated_bytes: int
    def __init__(self, capacity_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ...) -> None: ...

class ExplainBlocksRequest(_message.Message):
    __slots__ = ("namespace", "keys")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _block_pb2.BlockKeys
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("fate", "tiers", "left_tier", "time", "reason", "layout_differences", "lease_count", "is_pinned")
    class Fate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FATE_UNSPECIFIED: _ClassVar[Explanation.Fate]
        CACHED: _ClassVar[Explanation.Fate]
        PENDING: _ClassVar[Explanation.Fate]
        EVICTED: _ClassVar[Explanation.Fate]
        NOT_ADMITTED: _ClassVar[Explanation.Fate]
        DAMAGED: _ClassVar[Explanation.Fate]
        EXPIRED: _ClassVar[Explanation.Fate]
        REMOVED: _ClassVar[Explanation.Fate]
        UNKNOWN: _ClassVar[Explanation.Fate]
        OTHER_LAYOUT: _ClassVar[Explanation.Fate]
    FATE_UNSPECIFIED: Explanation.Fate
    CACHED: Explanation.Fate
    PENDING: Explanation.Fate
    EVICTED: Explanation.Fate
    NOT_ADMITTED: Explanation.Fate
    DAMAGED: Explanation.Fate
    EXPIRED: Explanation.Fate
    REMOVED: Explanation.Fate
    UNKNOWN: Explanation.Fate
    OTHER_LAYOUT: Explanation.Fate
    FATE_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    LEFT_TIER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    fate: Explanation.Fate
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    left_tier: _block_pb2.Tier
    time: _timestamp_pb2.Timestamp
    reason: str
    layout_differences: _containers.RepeatedScalarFieldContainer[str]
    lease_count: int
    is_pinned: bool
    def __init__(self, fate: _Optional[_Union[Explanation.Fate, str]] = ..., tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., left_tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., layout_differences: _Optional[_Iterable[str]] = ..., lease_count: _Optional[int] = ..., is_pinned: bool = ...) -> None: ...

class HistoryStats(_message.Message):
    __slots__ = ("entry_count", "capacity", "memory_bytes", "dropped_count")
    ENTRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    entry_count: int
    capacity: int
    memory_bytes: int
    dropped_count: int
    def __init__(self, entry_count: _Optional[int] = ..., capacity: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., dropped_count: _Optional[int] = ...) -> None: ...

class ExplainBlocksResponse(_message.Message):
    __slots__ = ("explanations", "history")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    history: HistoryStats
    def __init__(self, explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ..., history: _Optional[_Union[HistoryStats, _Mapping]] = ...) -> None: ...

class WarmPrefixRequest(_message.Message):
    __slots__ = ("namespace", "keys")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _block_pb2.BlockKeys
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ...) -> None: ...

class WarmPrefixResponse(_message.Message):
    __slots__ = ("accepted_count", "ready_count")
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    READY_COUNT_FIELD_NUMBER: _ClassVar[int]
    accepted_count: int
    ready_count: int
    def __init__(self, accepted_count: _Optional[int] = ..., ready_count: _Optional[int] = ...) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ("namespace", "keys", "tiers", "ends_only", "pinned_only", "leased_only", "min_age", "order", "descending", "page_size", "page_token")
    class Order(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ORDER_UNSPECIFIED: _ClassVar[ListBlocksRequest.Order]
        TABLE: _ClassVar[ListBlocksRequest.Order]
        AGE: _ClassVar[ListBlocksRequest.Order]
        HITS: _ClassVar[ListBlocksRequest.Order]
        SIZE: _ClassVar[ListBlocksRequest.Order]
        POSITION: _ClassVar[ListBlocksRequest.Order]
    ORDER_UNSPECIFIED: ListBlocksRequest.Order
    TABLE: ListBlocksRequest.Order
    AGE: ListBlocksRequest.Order
    HITS: ListBlocksRequest.Order
    SIZE: ListBlocksRequest.Order
    POSITION: ListBlocksRequest.Order
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    ENDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    PINNED_ONLY_FIELD_NUMBER: _ClassVar[int]
    LEASED_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_AGE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DESCENDING_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _block_pb2.BlockKeys
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    ends_only: bool
    pinned_only: bool
    leased_only: bool
    min_age: _duration_pb2.Duration
    order: ListBlocksRequest.Order
    descending: bool
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., ends_only: bool = ..., pinned_only: bool = ..., leased_only: bool = ..., min_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., order: _Optional[_Union[ListBlocksRequest.Order, str]] = ..., descending: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListedBlock(_message.Message):
    __slots__ = ("block_hash", "group", "shard", "position", "tier", "other_tiers", "slot_bytes", "age", "hit_count", "is_pinned", "is_leased")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    OTHER_TIERS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    IS_LEASED_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    group: int
    shard: int
    position: int
    tier: _block_pb2.Tier
    other_tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    slot_bytes: int
    age: _duration_pb2.Duration
    hit_count: int
    is_pinned: bool
    is_leased: bool
    def __init__(self, block_hash: _Optional[bytes] = ..., group: _Optional[int] = ..., shard: _Optional[int] = ..., position: _Optional[int] = ..., tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., other_tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., slot_bytes: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hit_count: _Optional[int] = ..., is_pinned: bool = ..., is_leased: bool = ...) -> None: ...

class ListBlocksResponse(_message.Message):
    __slots__ = ("blocks", "next_page_token")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[ListedBlock]
    next_page_token: str
    def __init__(self, blocks: _Optional[_Iterable[_Union[ListedBlock, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("namespace", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("requests", "next_page_token", "capacity", "memory_bytes")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SeenRequest]
    next_page_token: str
    capacity: int
    memory_bytes: int
    def __init__(self, requests: _Optional[_Iterable[_Union[SeenRequest, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., capacity: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class GetRequestRequest(_message.Message):
    __slots__ = ("namespace", "request_id")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    request_id: str
    def __init__(self, namespace: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class SeenLookup(_message.Message):
    __slots__ = ("keys", "block_count", "found_count", "tier_counts")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    FOUND_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIER_COUNTS_FIELD_NUMBER: _ClassVar[int]
    keys: _block_pb2.BlockKeys
    block_count: int
    found_count: int
    tier_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., block_count: _Optional[int] = ..., found_count: _Optional[int] = ..., tier_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class SeenRequest(_message.Message):
    __slots__ = ("request_id", "namespace", "time", "lookups")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    namespace: str
    time: _timestamp_pb2.Timestamp
    lookups: _containers.RepeatedCompositeFieldContainer[SeenLookup]
    def __init__(self, request_id: _Optional[str] = ..., namespace: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lookups: _Optional[_Iterable[_Union[SeenLookup, _Mapping]]] = ...) -> None: ...

class RecordRequestsRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class RecordedRequest(_message.Message):
    __slots__ = ("time", "namespace", "block_tokens", "block_bytes", "group", "shard", "position", "hashes", "lost_count")
    TIME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    LOST_COUNT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    namespace: str
    block_tokens: int
    block_bytes: int
    group: int
    shard: int
    position: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    lost_count: int
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., namespace: _Optional[str] = ..., block_tokens: _Optional[int] = ..., block_bytes: _Optional[int] = ..., group: _Optional[int] = ..., shard: _Optional[int] = ..., position: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., lost_count: _Optional[int] = ...) -> None: ...

class EventStats(_message.Message):
    __slots__ = ("watcher_count", "memory_bytes", "lost_count")
    WATCHER_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOST_COUNT_FIELD_NUMBER: _ClassVar[int]
    watcher_count: int
    memory_bytes: int
    lost_count: int
    def __init__(self, watcher_count: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., lost_count: _Optional[int] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("epoch", "sample_time", "tiers", "session_count", "lease_count", "rejected_count", "version", "uptime", "namespace_count", "history", "compute_seconds_saved", "refused_ask_count", "refused_load_count", "refused_store_count", "refused_prefetch_count", "delayed_demotion_count", "is_draining", "events", "listen_errors", "certificate_expire_time")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_COUNT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_SAVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ASK_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_LOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_STORE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_PREFETCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    DELAYED_DEMOTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LISTEN_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sample_time: _timestamp_pb2.Timestamp
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    session_count: int
    lease_count: int
    rejected_count: int
    version: str
    uptime: _duration_pb2.Duration
    namespace_count: int
    history: HistoryStats
    compute_seconds_saved: float
    refused_ask_count: int
    refused_load_count: int
    refused_store_count: int
    refused_prefetch_count: int
    delayed_demotion_count: int
    is_draining: bool
    events: EventStats
    listen_errors: _containers.RepeatedScalarFieldContainer[str]
    certificate_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, epoch: _Optional[int] = ..., sample_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., session_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., rejected_count: _Optional[int] = ..., version: _Optional[str] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., namespace_count: _Optional[int] = ..., history: _Optional[_Union[HistoryStats, _Mapping]] = ..., compute_seconds_saved: _Optional[float] = ..., refused_ask_count: _Optional[int] = ..., refused_load_count: _Optional[int] = ..., refused_store_count: _Optional[int] = ..., refused_prefetch_count: _Optional[int] = ..., delayed_demotion_count: _Optional[int] = ..., is_draining: bool = ..., events: _Optional[_Union[EventStats, _Mapping]] = ..., listen_errors: _Optional[_Iterable[str]] = ..., certificate_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class WatchStatsRequest(_message.Message):
    __slots__ = ("namespace", "interval")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    interval: _duration_pb2.Duration
    def __init__(self, namespace: _Optional[str] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class EvictBlocksRequest(_message.Message):
    __slots__ = ("namespace", "keys", "tiers", "force", "validate_only", "min_age", "target")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_AGE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _block_pb2.BlockKeys
    tiers: _containers.RepeatedScalarFieldContainer[_block_pb2.Tier]
    force: bool
    validate_only: bool
    min_age: _duration_pb2.Duration
    target: EvictionTarget
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[_block_pb2.Tier, str]]] = ..., force: bool = ..., validate_only: bool = ..., min_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., target: _Optional[_Union[EvictionTarget, _Mapping]] = ...) -> None: ...

class EvictionTarget(_message.Message):
    __slots__ = ("used_bytes",)
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    used_bytes: int
    def __init__(self, used_bytes: _Optional[int] = ...) -> None: ...

class EvictBlocksResponse(_message.Message):
    __slots__ = ("evicted_count", "deferred_count", "pinned_count", "used_bytes")
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PINNED_COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    evicted_count: int
    deferred_count: int
    pinned_count: int
    used_bytes: int
    def __init__(self, evicted_count: _Optional[int] = ..., deferred_count: _Optional[int] = ..., pinned_count: _Optional[int] = ..., used_bytes: _Optional[int] = ...) -> None: ...

class InvalidateNamespaceRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class InvalidateNamespaceResponse(_message.Message):
    __slots__ = ("namespace_count", "block_count")
    NAMESPACE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    namespace_count: int
    block_count: int
    def __init__(self, namespace_count: _Optional[int] = ..., block_count: _Optional[int] = ...) -> None: ...

class FlushTierRequest(_message.Message):
    __slots__ = ("tier",)
    TIER_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ...) -> None: ...

class FlushTierResponse(_message.Message):
    __slots__ = ("flushed_bytes",)
    FLUSHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    flushed_bytes: int
    def __init__(self, flushed_bytes: _Optional[int] = ...) -> None: ...

class ScrubTierRequest(_message.Message):
    __slots__ = ("tier", "rate_limit_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    rate_limit_bytes: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., rate_limit_bytes: _Optional[int] = ...) -> None: ...

class ScrubProgress(_message.Message):
    __slots__ = ("scanned_count", "corrupt_count", "scanned_bytes", "total_count", "done")
    SCANNED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCANNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    scanned_count: int
    corrupt_count: int
    scanned_bytes: int
    total_count: int
    done: bool
    def __init__(self, scanned_count: _Optional[int] = ..., corrupt_count: _Optional[int] = ..., scanned_bytes: _Optional[int] = ..., total_count: _Optional[int] = ..., done: bool = ...) -> None: ...

class DrainAgentRequest(_message.Message):
    __slots__ = ("grace_period",)
    GRACE_PERIOD_FIELD_NUMBER: _ClassVar[int]
    grace_period: _duration_pb2.Duration
    def __init__(self, grace_period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DrainProgress(_message.Message):
    __slots__ = ("session_count", "lease_count", "unflushed_bytes", "done")
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNFLUSHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    session_count: int
    lease_count: int
    unflushed_bytes: int
    done: bool
    def __init__(self, session_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., unflushed_bytes: _Optional[int] = ..., done: bool = ...) -> None: ...

class ResumeAgentRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeAgentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "namespace", "worker", "pid", "create_time", "lease_count", "leased_bytes", "uid", "quarantined_bytes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    namespace: str
    worker: str
    pid: int
    create_time: _timestamp_pb2.Timestamp
    lease_count: int
    leased_bytes: int
    uid: int
    quarantined_bytes: int
    def __init__(self, session_id: _Optional[int] = ..., namespace: _Optional[str] = ..., worker: _Optional[str] = ..., pid: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lease_count: _Optional[int] = ..., leased_bytes: _Optional[int] = ..., uid: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class NamespaceInfo(_message.Message):
    __slots__ = ("spec", "layout_digest", "generation_id", "block_count", "used_bytes", "sibling_differences", "session_count", "pinned_bytes", "rule", "ttl", "limit_bytes", "guaranteed_bytes", "occupied_bytes", "copies")
    class Copies(_message.Message):
        __slots__ = ("device", "block_count", "used_bytes")
        DEVICE_FIELD_NUMBER: _ClassVar[int]
        BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
        USED_BYTES_FIELD_NUMBER: _ClassVar[int]
        device: str
        block_count: int
        used_bytes: int
        def __init__(self, device: _Optional[str] = ..., block_count: _Optional[int] = ..., used_bytes: _Optional[int] = ...) -> None: ...
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIBLING_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OCCUPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    spec: _block_pb2.NamespaceSpec
    layout_digest: bytes
    generation_id: bytes
    block_count: _containers.RepeatedScalarFieldContainer[int]
    used_bytes: _containers.RepeatedScalarFieldContainer[int]
    sibling_differences: _containers.RepeatedScalarFieldContainer[str]
    session_count: int
    pinned_bytes: _containers.RepeatedScalarFieldContainer[int]
    rule: str
    ttl: _duration_pb2.Duration
    limit_bytes: _containers.RepeatedScalarFieldContainer[int]
    guaranteed_bytes: _containers.RepeatedScalarFieldContainer[int]
    occupied_bytes: _containers.RepeatedScalarFieldContainer[int]
    copies: _containers.RepeatedCompositeFieldContainer[NamespaceInfo.Copies]
    def __init__(self, spec: _Optional[_Union[_block_pb2.NamespaceSpec, _Mapping]] = ..., layout_digest: _Optional[bytes] = ..., generation_id: _Optional[bytes] = ..., block_count: _Optional[_Iterable[int]] = ..., used_bytes: _Optional[_Iterable[int]] = ..., sibling_differences: _Optional[_Iterable[str]] = ..., session_count: _Optional[int] = ..., pinned_bytes: _Optional[_Iterable[int]] = ..., rule: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., limit_bytes: _Optional[_Iterable[int]] = ..., guaranteed_bytes: _Optional[_Iterable[int]] = ..., occupied_bytes: _Optional[_Iterable[int]] = ..., copies: _Optional[_Iterable[_Union[NamespaceInfo.Copies, _Mapping]]] = ...) -> None: ...

class ListNamespacesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNamespacesResponse(_message.Message):
    __slots__ = ("namespaces", "next_page_token")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceInfo]
    next_page_token: str
    def __init__(self, namespaces: _Optional[_Iterable[_Union[NamespaceInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class NodeTier(_message.Message):
    __slots__ = ("tier", "capacity_bytes", "used_bytes", "block_count")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    tier: _block_pb2.Tier
    capacity_bytes: int
    used_bytes: int
    block_count: int
    def __init__(self, tier: _Optional[_Union[_block_pb2.Tier, str]] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., block_count: _Optional[int] = ...) -> None: ...

class NodeNamespace(_message.Message):
    __slots__ = ("tenant", "name", "layout_digest", "generation_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    layout_digest: bytes
    generation_id: bytes
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., layout_digest: _Optional[bytes] = ..., generation_id: _Optional[bytes] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("node_id", "name", "address", "version", "epoch", "pid", "is_self", "start_time", "last_seen_time", "heartbeat_interval", "namespaces", "tiers")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    IS_SELF_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    address: str
    version: str
    epoch: int
    pid: int
    is_self: bool
    start_time: _timestamp_pb2.Timestamp
    last_seen_time: _timestamp_pb2.Timestamp
    heartbeat_interval: _duration_pb2.Duration
    namespaces: _containers.RepeatedCompositeFieldContainer[NodeNamespace]
    tiers: _containers.RepeatedCompositeFieldContainer[NodeTier]
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., pid: _Optional[int] = ..., is_self: bool = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., namespaces: _Optional[_Iterable[_Union[NodeNamespace, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[NodeTier, _Mapping]]] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

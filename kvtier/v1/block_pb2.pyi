import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_GPU: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_CLUSTER: _ClassVar[Tier]

class BlockStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOCK_STATUS_UNSPECIFIED: _ClassVar[BlockStatus]
    OK: _ClassVar[BlockStatus]
    ABSENT: _ClassVar[BlockStatus]
    PRESENT: _ClassVar[BlockStatus]
    PENDING: _ClassVar[BlockStatus]
    REFUSED: _ClassVar[BlockStatus]
    EXPIRED: _ClassVar[BlockStatus]
    DIGEST_MISMATCH: _ClassVar[BlockStatus]
TIER_UNSPECIFIED: Tier
TIER_GPU: Tier
TIER_HOST: Tier
TIER_DISK: Tier
TIER_CLUSTER: Tier
BLOCK_STATUS_UNSPECIFIED: BlockStatus
OK: BlockStatus
ABSENT: BlockStatus
PRESENT: BlockStatus
PENDING: BlockStatus
REFUSED: BlockStatus
EXPIRED: BlockStatus
DIGEST_MISMATCH: BlockStatus

class NamespaceSpec(_message.Message):
    __slots__ = ("tenant", "name", "model", "revision", "dtype", "block_tokens", "block_bytes", "layers", "kv_heads", "head_dim", "layout", "shards", "hash_algorithm", "engine", "extra")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    HASH_ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    model: str
    revision: str
    dtype: str
    block_tokens: int
    block_bytes: _containers.RepeatedScalarFieldContainer[int]
    layers: int
    kv_heads: int
    head_dim: int
    layout: str
    shards: int
    hash_algorithm: str
    engine: str
    extra: _containers.ScalarMap[str, str]
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., dtype: _Optional[str] = ..., block_tokens: _Optional[int] = ..., block_bytes: _Optional[_Iterable[int]] = ..., layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., layout: _Optional[str] = ..., shards: _Optional[int] = ..., hash_algorithm: _Optional[str] = ..., engine: _Optional[str] = ..., extra: _Optional[_Mapping[str, str]] = ...) -> None: ...

class BlockKeys(_message.Message):
    __slots__ = ("hash_bytes", "hashes", "group", "shard", "parent_hash", "position")
    HASH_BYTES_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    hash_bytes: int
    hashes: bytes
    group: int
    shard: int
    parent_hash: bytes
    position: int
    def __init__(self, hash_bytes: _Optional[int] = ..., hashes: _Optional[bytes] = ..., group: _Optional[int] = ..., shard: _Optional[int] = ..., parent_hash: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...

class Slots(_message.Message):
    __slots__ = ("extent", "slot", "generation")
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    extent: _containers.RepeatedScalarFieldContainer[int]
    slot: _containers.RepeatedScalarFieldContainer[int]
    generation: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, extent: _Optional[_Iterable[int]] = ..., slot: _Optional[_Iterable[int]] = ..., generation: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockRun(_message.Message):
    __slots__ = ("start", "count", "tier", "pending", "ready_after")
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    READY_AFTER_FIELD_NUMBER: _ClassVar[int]
    start: int
    count: int
    tier: Tier
    pending: bool
    ready_after: _duration_pb2.Duration
    def __init__(self, start: _Optional[int] = ..., count: _Optional[int] = ..., tier: _Optional[_Union[Tier, str]] = ..., pending: bool = ..., ready_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "epoch", "ttl", "expire_time")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    epoch: int
    ttl: _duration_pb2.Duration
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, lease_id: _Optional[int] = ..., epoch: _Optional[int] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kvtier.v1 import block_pb2 as _block_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchEventsRequest(_message.Message):
    __slots__ = ("namespace", "start_revision", "epoch", "snapshot")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    START_REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    start_revision: int
    epoch: int
    snapshot: bool
    def __init__(self, namespace: _Optional[str] = ..., start_revision: _Optional[int] = ..., epoch: _Optional[int] = ..., snapshot: bool = ...) -> None: ...

class WatchEventsResponse(_message.Message):
    __slots__ = ("epoch", "revision", "event_time", "events", "snapshot_done", "namespace")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_DONE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    revision: int
    event_time: _timestamp_pb2.Timestamp
    events: _containers.RepeatedCompositeFieldContainer[Event]
    snapshot_done: bool
    namespace: str
    def __init__(self, epoch: _Optional[int] = ..., revision: _Optional[int] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., snapshot_done: bool = ..., namespace: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("blocks_stored", "blocks_removed")
    class BlocksStored(_message.Message):
        __slots__ = ("keys", "tier")
        KEYS_FIELD_NUMBER: _ClassVar[int]
        TIER_FIELD_NUMBER: _ClassVar[int]
        keys: _block_pb2.BlockKeys
        tier: _block_pb2.Tier
        def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., tier: _Optional[_Union[_block_pb2.Tier, str]] = ...) -> None: ...
    class BlocksRemoved(_message.Message):
        __slots__ = ("keys", "tier")
        KEYS_FIELD_NUMBER: _ClassVar[int]
        TIER_FIELD_NUMBER: _ClassVar[int]
        keys: _block_pb2.BlockKeys
        tier: _block_pb2.Tier
        def __init__(self, keys: _Optional[_Union[_block_pb2.BlockKeys, _Mapping]] = ..., tier: _Optional[_Union[_block_pb2.Tier, str]] = ...) -> None: ...
    BLOCKS_STORED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    blocks_stored: Event.BlocksStored
    blocks_removed: Event.BlocksRemoved
    def __init__(self, blocks_stored: _Optional[_Union[Event.BlocksStored, _Mapping]] = ..., blocks_removed: _Optional[_Union[Event.BlocksRemoved, _Mapping]] = ...) -> None: ...

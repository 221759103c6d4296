"""The services have every method of their contracts."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from kvtier.rpc.block_cache import BlockCacheService
from kvtier.rpc.cache_admin import CacheAdminService
from kvtier.rpc.cache_events import CacheEventsService
from kvtier.rpc.cache_inspection import CacheInspectionService
from kvtier.rpc.cache_listing import CacheListingService
from kvtier.v1 import block_cache_pb2, cache_admin_pb2, cache_events_pb2

_BLOCK_CACHE = block_cache_pb2.DESCRIPTOR.services_by_name["BlockCache"]
_CACHE_ADMIN = cache_admin_pb2.DESCRIPTOR.services_by_name["CacheAdmin"]
_CACHE_EVENTS = cache_events_pb2.DESCRIPTOR.services_by_name["CacheEvents"]


@pytest.mark.parametrize(
    ("service", "servicers"),
    [
        (_BLOCK_CACHE, [BlockCacheService]),
        (_CACHE_ADMIN, [CacheAdminService, CacheInspectionService, CacheListingService]),
        (_CACHE_EVENTS, [CacheEventsService]),
    ],
    ids=["BlockCache", "CacheAdmin", "CacheEvents"],
)
def test_every_method_has_one_servicer(
    service: ServiceDescriptor, servicers: list[type[object]]
) -> None:
    for method in service.methods:
        assert [hasattr(each, method.name) for each in servicers].count(True) == 1, method.name

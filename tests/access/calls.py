"""Every method of the API, called by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import grpc

from kvtier.client.endpoint import Endpoint
from kvtier.client.service import Service
from kvtier.core.status import CODES, Code
from kvtier.errors import KvtierError
from kvtier.v1 import block_cache_pb2, block_pb2, cache_events_pb2
from kvtier.v1 import cache_admin_pb2 as admin_pb

BLOCK_CACHE: Final = block_cache_pb2.DESCRIPTOR.services_by_name["BlockCache"]
CACHE_ADMIN: Final = admin_pb.DESCRIPTOR.services_by_name["CacheAdmin"]
CACHE_EVENTS: Final = cache_events_pb2.DESCRIPTOR.services_by_name["CacheEvents"]
SERVICES: Final = {each.name: each for each in (BLOCK_CACHE, CACHE_ADMIN, CACHE_EVENTS)}
BLOCK_BYTES: Final = 4096
SECONDS: Final = 20.0

#: The full names of all methods.
METHODS: Final = [method.full_name for service in SERVICES.values() for method in service.methods]
_KEYS: Final = block_pb2.BlockKeys(hash_bytes=32, hashes=bytes(32))


def spec_message(label: str) -> block_pb2.NamespaceSpec:
    tenant, _, name = label.partition("/")
    return block_pb2.NamespaceSpec(tenant=tenant, name=name, block_bytes=[BLOCK_BYTES])


def request_for(method: str, label: str) -> Any:
    """A valid one, about that namespace where it can say so."""
    name = method.rpartition(".")[2]
    if name == "OpenSession":
        return block_cache_pb2.OpenSessionRequest(namespace=spec_message(label))
    service = SERVICES[method.removeprefix("kvtier.v1.").partition(".")[0]]
    request_class = service.methods_by_name[name].input_type._concrete_class
    fields = request_class.DESCRIPTOR.fields_by_name
    request = request_class()
    if "namespace" in fields:
        request.namespace = label
    if "keys" in fields:
        if fields["keys"].is_repeated:
            request.keys.add().CopyFrom(_KEYS)
        else:
            request.keys.CopyFrom(_KEYS)
    values = {"wait": 1, "pin_id": "0123", "tier": block_pb2.TIER_HOST, "capacity_bytes": 64 << 20}
    for field, value in values.items():
        if field in fields:
            setattr(request, field, value)
    if name == "WatchEvents":
        request.snapshot = True
    if name == "CreatePin":
        request.ttl.seconds = 60
    return request


class Person:
    """One caller's connections to the worker API and the admin API; a context manager."""

    def __init__(self, workers: Endpoint | str, operators: Endpoint | str) -> None:
        self._services = {
            BLOCK_CACHE.name: Service(workers, BLOCK_CACHE),
            CACHE_ADMIN.name: Service(operators, CACHE_ADMIN),
            CACHE_EVENTS.name: Service(operators, CACHE_EVENTS),
        }

    def call(
        self,
        method: str,
        label: str,
        session: bytes = b"",
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Any:
        """The first answer. Raises KvtierErrors. `meanwhile` is called for a stream that begins."""
        service_name, _, name = method.removeprefix("kvtier.v1.").partition(".")
        service, request = self._services[service_name], request_for(method, label)
        metadata = (("kvtier-session-bin", session),) if session else ()
        if name == "WriteBlocks":
            message = block_cache_pb2.WriteBlocksRequest(keys=_KEYS).SerializeToString()
            return service.send(name, iter([message]), SECONDS, metadata)
        if name == "ReadBlocks":
            with closing(service.receive(name, request, SECONDS, metadata)) as messages:
                return next(messages, None)
        if name in ("WatchStats", "RecordRequests", "ScrubTier", "DrainAgent", "WatchEvents"):
            return self._first(service.stream(name, request, SECONDS), meanwhile)
        return service.call(name, request, SECONDS, metadata)

    @staticmethod
    def _first(stream: Generator[Any], meanwhile: Callable[[], object]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, stream)
            while True:
                try:
                    answer = first.result(0.01)
                    break
                except TimeoutError:
                    meanwhile()
        stream.close()
        return answer

    def open(self, label: str) -> bytes:
        token: bytes = self.call("kvtier.v1.BlockCache.OpenSession", label).session_token
        return token

    def close(self) -> None:
        for service in self._services.values():
            service.close()

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def code_of(call: Callable[[], object]) -> Code | str | None:
    """How it ended: None if well, a Code, or the name of another code."""
    try:
        call()
    except KvtierError as error:
        if type(error) in CODES:
            return CODES[type(error)]
        cause: Any = error.__cause__
        return str(cause.code().name) if isinstance(cause, grpc.RpcError) else repr(error)
    return None

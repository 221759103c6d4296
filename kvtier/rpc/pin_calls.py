"""What CacheAdmin answers about pins."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kvtier.errors import InvalidRequestError, NotFoundError
from kvtier.rpc import conversion as convert
from kvtier.rpc.paging import page_of
from kvtier.rpc.server import Call
from kvtier.v1 import cache_admin_pb2 as pb

if TYPE_CHECKING:
    from kvtier.access.scope import Scope
    from kvtier.agent.serving.pins import Pin, Pins
    from kvtier.agent.sessions.namespaces import Namespaces
    from kvtier.rpc.block_cache import Identity

log = logging.getLogger(__name__)


class PinCalls:
    """A part of the CacheAdmin service."""

    def __init__(self, pins: Pins, namespaces: Namespaces, identity: Identity) -> None:
        self._pins = pins
        self._known = namespaces
        self._most_keys = identity.max_batch_blocks

    async def CreatePin(self, request: pb.CreatePinRequest, call: Call) -> pb.Pin:
        namespace = self._known.select_one(request.namespace)
        remaining = call.remaining_seconds
        pin = await self._pins.create(
            namespace,
            convert.keys_from(request.keys, namespace, self._most_keys),
            ttl_seconds=convert.seconds_from(request.ttl, "ttl"),
            reason=request.reason,
            patience_seconds=None if remaining is None else max(0.0, remaining * 0.8 - 0.02),
        )
        log.info(
            "pin %s: %d blocks of %s: %s",
            pin.pin_id,
            pin.block_count,
            namespace.label,
            pin.reason or "no reason given",
        )
        return self._pin(pin)

    async def DeletePin(self, request: pb.DeletePinRequest, call: Call) -> pb.DeletePinResponse:
        if not request.pin_id:
            raise InvalidRequestError("pin_id is empty; ListPins tells the ids")
        self._require_visible(request.pin_id, call.caller.scope)
        pin = self._pins.delete(request.pin_id)
        log.info("pin %s of %s is deleted", pin.pin_id, pin.namespace.label)
        return pb.DeletePinResponse()

    async def ListPins(self, request: pb.ListPinsRequest, call: Call) -> pb.ListPinsResponse:
        scope = call.caller.scope
        chosen = {each.namespace_id for each in self._known.select(request.namespace, scope)}
        pins = [each for each in self._pins if each.namespace.namespace_id in chosen]
        page, token = page_of(pins, request.page_size, request.page_token)
        return pb.ListPinsResponse(pins=map(self._pin, page), next_page_token=token)

    def _require_visible(self, pin_id: str, scope: Scope) -> None:
        """A pin of others is no pin."""
        if scope.is_all:
            return
        specs = [pin.namespace.spec for pin in self._pins if pin.pin_id == pin_id]
        if not any(scope.covers(spec.tenant, spec.name) for spec in specs):
            raise NotFoundError(f"no pin {pin_id!r}: it has ended, or there never was one")

    def _pin(self, pin: Pin) -> pb.Pin:
        return pb.Pin(
            pin_id=pin.pin_id,
            namespace=pin.namespace.label,
            block_count=pin.block_count,
            expire_time=convert.timestamp(time.time() + self._pins.remaining_seconds(pin)),
            reason=pin.reason,
            pinned_bytes=pin.pinned_bytes,
        )

"""Where changes of residency can be watched."""

from __future__ import annotations

from typing import Final

from kvtier.agent.serving.admission import Admission, AdmissionLimits
from kvtier.agent.serving.events import Events
from kvtier.agent.sessions.namespaces import Namespaces
from kvtier.agent.sessions.sessions import ANY_TENANT, Access
from kvtier.config import AgentConfig
from kvtier.daemon.settings import stream_access
from kvtier.rpc.cache_events import CacheEventsService
from kvtier.rpc.server import Limits, Server
from kvtier.v1 import cache_events_pb2

_CACHE_EVENTS: Final = cache_events_pb2.DESCRIPTOR.services_by_name["CacheEvents"]


_EVERYTHING: Final = Access(frozenset({ANY_TENANT}))


class EventsOffer:
    """One number of watchers for all places where they may ask."""

    def __init__(self, config: AgentConfig, events: Events, namespaces: Namespaces) -> None:
        self._of_workers = CacheEventsService(events, namespaces, stream_access(config))
        self._of_operators = CacheEventsService(events, namespaces, _EVERYTHING)
        watchers = AdmissionLimits(
            streams=config.events.max_watchers,
            streams_are=("watchers", "events.max_watchers"),
            session_share=1.0,
        )
        self._limits = Limits(Admission(watchers), config.streams.stall_seconds)

    def to_workers(self, server: Server) -> None:
        """On their socket: of the tenants of those who do not attach."""
        server.add(_CACHE_EVENTS, self._of_workers, limits=self._limits)

    def to_operators(self, server: Server) -> None:
        """On the admin socket all; over TCP what a guard lets pass."""
        server.add(_CACHE_EVENTS, self._of_operators, limits=self._limits)

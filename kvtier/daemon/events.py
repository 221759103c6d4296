"""Where changes of residency can be watched."""

from __future__ import annotations

from typing import Final

from kvtier.agent.admission import Admission, AdmissionLimits
from kvtier.agent.events import Events
from kvtier.agent.namespaces import Namespaces
from kvtier.agent.sessions import ANY_TENANT, Access
from kvtier.config import AgentConfig
from kvtier.daemon.settings import stream_access
from kvtier.rpc.cache_events import CacheEventsService
from kvtier.rpc.server import Limits, Server
from kvtier.v1 import cache_events_pb2

_CACHE_EVENTS: Final = cache_events_pb2.DESCRIPTOR.services_by_name["CacheEvents"]


def add_events(
    config: AgentConfig, events: Events, namespaces: Namespaces, workers: Server, admins: Server
) -> None:
    """On the workers' socket for the tenants of those who do not attach, on the admin socket for
    all; both share one number of watchers."""
    watchers = AdmissionLimits(
        streams=config.events.max_watchers,
        streams_are=("watchers", "events.max_watchers"),
        session_share=1.0,
    )
    limits = Limits(Admission(watchers), config.streams.stall_seconds)
    everything = Access(frozenset({ANY_TENANT}))
    for server, access in ((workers, stream_access(config)), (admins, everything)):
        service = CacheEventsService(events, namespaces, access)
        server.add(_CACHE_EVENTS, service, limits=limits)

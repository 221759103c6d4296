"""Watching what a namespace has on an agent."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Generator
from contextlib import closing
from typing import Final, Self

from kvtier.client.endpoint import Endpoint
from kvtier.client.residents import Residents
from kvtier.client.service import Service
from kvtier.errors import EventsLostError, KvtierError, NotFoundError
from kvtier.v1 import cache_events_pb2 as pb

log = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 1.0
#: Bookmarks come every 5 s.
_SILENCE_SECONDS: Final = 15.0


class EventsClient:
    """Calls one agent's CacheEvents, on its admin socket or on that of workers. A context manager.

    Methods raise KvtierErrors.
    """

    def __init__(self, address: str | Endpoint) -> None:
        self._service = Service(address, pb.DESCRIPTOR.services_by_name["CacheEvents"])

    def watch(self, request: pb.WatchEventsRequest) -> Generator[pb.WatchEventsResponse]:
        """What changes, until the generator is closed. EventsLostError: take a snapshot."""
        yield from self._service.stream("WatchEvents", request)

    def close(self) -> None:
        """Ends watching, of other threads too."""
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Follower:
    """Knows what one namespace has on one agent. A context manager with a thread.

    The thread watches, comes back when the connection ends, and takes a new snapshot where changes
    were missed; until that is complete, what was known before counts. A namespace that the agent
    does not know has nothing. Reading takes no lock and may be done by any thread or event loop.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self._name = namespace
        self._client = EventsClient(address)
        self._known = Residents(namespace)
        self._heard_at = -_SILENCE_SECONDS
        self._is_watching = False
        self._is_closed = threading.Event()
        self._has_changed = threading.Condition()
        #: Snapshots that were taken; all but the first because changes were missed.
        self.snapshot_count = 0
        #: Why it does not watch; empty while it does.
        self.reason = "has not begun"
        self._thread = threading.Thread(target=self._follow, name="kvtier-follower", daemon=True)

    @property
    def residents(self) -> Residents:
        """The last that is complete; empty before the first one is. Another object after a new
        snapshot."""
        return self._known

    @property
    def is_current(self) -> bool:
        """Whether the agent tells of changes at the moment, or says that there is nothing. If it is
        not, what is known may be out of date: the agent may be gone, or hang."""
        return self._is_watching and time.monotonic() - self._heard_at < _SILENCE_SECONDS

    def wait(self, revision: int = 0, timeout_seconds: float = 10.0) -> bool:
        """Until it is current, and has replayed this revision; whether it came to that in time."""
        with self._has_changed:
            return self._has_changed.wait_for(
                lambda: self.is_current and self._known.revision >= revision, timeout_seconds
            )

    def _follow(self) -> None:
        residents = Residents(self._name)
        delay = 0.0
        while not self._is_closed.wait(delay * random.uniform(0.5, 1.0)):
            try:
                with closing(self._client.watch(residents.request())) as messages:
                    for message in messages:
                        residents.take(message)
                        self._heard(residents, message)
                        delay = 0.0
            except NotFoundError as error:
                residents = Residents(self._name)
                self._has_nothing(residents, str(error))
            except KvtierError as error:
                self._lost(str(error))
                if isinstance(error, EventsLostError) or not residents.is_complete:
                    residents = Residents(self._name)
            delay = min(max(2 * delay, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS)

    def _heard(self, residents: Residents, message: pb.WatchEventsResponse) -> None:
        self._heard_at = time.monotonic()
        if residents.is_complete:
            with self._has_changed:
                self.snapshot_count += message.snapshot_done
                self._known, self._is_watching, self.reason = residents, True, ""
                self._has_changed.notify_all()

    def _has_nothing(self, residents: Residents, reason: str) -> None:
        self._heard_at = time.monotonic()
        with self._has_changed:
            self._known, self._is_watching, self.reason = residents, True, reason
            self._has_changed.notify_all()

    def _lost(self, reason: str) -> None:
        self._is_watching, self.reason = False, reason
        if not self._is_closed.is_set():
            log.info("%s: %s is not watched: %s", self.address, self._name, reason)

    def close(self) -> None:
        self._is_closed.set()
        self._client.close()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

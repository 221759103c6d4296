"""What workers ask for, passed on to whoever records it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kvtier.access.scope import ALL, Scope
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.core.block import BlockKeys
from kvtier.errors import OverloadedError

#: Of one recording, waiting to be sent: some 100 bytes each.
_MOST_HASHES: Final = 1 << 17
_MOST_REQUESTS: Final = 1 << 14
_MOST_RECORDINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One lookup of one lane, at a time in seconds of the wall clock.

    `lost_count` is how many before it found no place in the queue.
    """

    namespace: Namespace
    keys: BlockKeys
    time: float
    lost_count: int = 0


class Recording:
    """A queue of a bounded number of hashes; what does not fit is lost, and counted."""

    def __init__(
        self, most_hashes: int = _MOST_HASHES, most_requests: int = _MOST_REQUESTS
    ) -> None:
        self._most_hashes = most_hashes
        self._most_requests = most_requests
        self._queue: deque[Asked] = deque()
        self._hash_count = 0
        self._lost_count = 0
        self._filled = asyncio.Event()

    def put(self, namespace: Namespace, keys: BlockKeys, time: float) -> None:
        """Never waits."""
        count = self._hash_count + len(keys.hashes)
        if len(self._queue) >= self._most_requests or (self._queue and count > self._most_hashes):
            self._lost_count += 1
            return
        self._queue.append(Asked(namespace, keys, time, self._lost_count))
        self._lost_count = 0
        self._hash_count = count
        self._filled.set()

    async def take(self) -> Asked:
        """The next one; waits for it."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        asked = self._queue.popleft()
        self._hash_count -= len(asked.keys.hashes)
        return asked


class Recorder:
    """Passes requests on while somebody records; costs nothing while nobody does.

    `wall_clock` gives seconds.
    """

    def __init__(self, namespaces: Namespaces, wall_clock: Callable[[], float]) -> None:
        self._namespaces = namespaces
        self._wall_clock = wall_clock
        self._recordings: dict[Recording, tuple[str, Scope]] = {}

    @contextmanager
    def recording(
        self, selector: str, scope: Scope = ALL, recording: Recording | None = None
    ) -> Iterator[Recording]:
        """What is asked for from now on in the scope's namespaces.

        Raises NotFoundError if the selector names nothing, OverloadedError if too many record.
        """
        self._namespaces.select(selector, scope)
        if len(self._recordings) >= _MOST_RECORDINGS:
            raise OverloadedError(f"{_MOST_RECORDINGS} recordings are under way, as many as may be")
        recording = recording or Recording()
        if not self._recordings:
            self._namespaces.on_asked.append(self._asked)
        self._recordings[recording] = selector, scope
        try:
            yield recording
        finally:
            del self._recordings[recording]
            if not self._recordings:
                self._namespaces.on_asked.remove(self._asked)

    def _asked(self, namespace: Namespace, keys: BlockKeys) -> None:
        now = self._wall_clock()
        spec = namespace.spec
        for recording, (selector, scope) in self._recordings.items():
            if scope.covers(spec.tenant, spec.name) and (not selector or spec.matches(selector)):
                recording.put(namespace, keys, now)

"""Changes of residency, passed on to whoever watches a namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from kvtier.agent.serving.event_log import Batch, EventLog, Snapshot
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.turns import READ_SLICE
from kvtier.errors import (
    AgentUnavailableError,
    EventsLostError,
    InvalidRequestError,
    NotFoundError,
)

#: A watcher with nothing to tell says so this often.
_BOOKMARK_SECONDS: Final = 5.0
#: What comes within so long of a first change goes with it: many small messages cost much more.
_GATHER_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on: the first revision to send, in an epoch. 0: from now on."""

    revision: int = 0
    epoch: int = 0


class Events:
    """A log for each namespace that is watched.

    A log begins with its first watcher, and ends when what its last one saw is no longer kept, or
    when the namespace makes way for another: so nothing is noted of what nobody watches. Each log
    has an epoch of its own, and whoever comes back to another one takes a snapshot.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        *,
        kept: int,
        max_logs: int,
        bookmark_seconds: float = _BOOKMARK_SECONDS,
        gather_seconds: float = _GATHER_SECONDS,
    ) -> None:
        self._kept = kept
        self._max_logs = max_logs
        self._bookmark_seconds = bookmark_seconds
        self._gather_seconds = gather_seconds
        self._logs: dict[Namespace, EventLog] = {}
        self._watcher_counts: dict[EventLog, int] = {}
        self._is_closed = False
        #: Watchers that were too slow, or came back too late, since the agent's start.
        self.lost_count = 0
        namespaces.on_dropped.append(self._dropped)

    @property
    def watcher_count(self) -> int:
        return sum(self._watcher_counts.values())

    @property
    def size_bytes(self) -> int:
        """The memory of all logs."""
        return sum(each.size_bytes for each in self._logs.values())

    async def watch(
        self, namespace: Namespace, start: Position | None
    ) -> AsyncGenerator[tuple[int, Batch], None]:
        """Batches, each with the epoch: changes from `start` on; None: first what there is.

        An empty one is a bookmark; the first one comes at once. Raises EventsLostError when changes
        are no longer kept, NotFoundError when the namespace makes way for another,
        AgentUnavailableError when the agent stops.
        """
        with self._watching(namespace) as log:
            try:
                sent = log.revision
                if start is None:
                    snapshot = Snapshot(log)
                    while True:
                        batch = snapshot.part(READ_SLICE)
                        if batch.runs or batch.is_snapshot_end:
                            yield log.epoch, batch
                        if batch.is_snapshot_end:
                            break
                        await asyncio.sleep(0)
                        self._check(namespace, log)
                    sent = batch.revision
                elif start.revision:
                    _check_epoch(start, log)
                    log.check(start.revision)
                    sent = start.revision - 1
                async for batch in self._changes(namespace, log, sent):
                    yield log.epoch, batch
            except EventsLostError:
                self.lost_count += 1
                raise

    async def _changes(
        self, namespace: Namespace, log: EventLog, sent: int
    ) -> AsyncGenerator[Batch, None]:
        yield Batch([], sent)
        while True:
            self._check(namespace, log)
            log.check(sent + 1)
            if sent < log.revision:
                batch = log.batch(sent + 1, READ_SLICE)
                sent = batch.revision
                yield batch
            elif await self._has_changed(log):
                await asyncio.sleep(self._gather_seconds)
            else:
                yield Batch([], sent)

    async def _has_changed(self, log: EventLog) -> bool:
        """Waits for it, for a while."""
        log.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._bookmark_seconds):
                await log.changed.wait()
                return True
        return False

    def _check(self, namespace: Namespace, log: EventLog) -> None:
        """Whether the log still hears of changes."""
        if self._is_closed:
            raise AgentUnavailableError("the agent stops")
        if self._logs.get(namespace) is not log:
            raise NotFoundError(f"{namespace.label} was not used, and made way for another")

    # Logs.

    @contextmanager
    def _watching(self, namespace: Namespace) -> Iterator[EventLog]:
        if self._is_closed:
            raise AgentUnavailableError("the agent stops")
        log = self._logs.get(namespace) or self._begin(namespace)
        self._watcher_counts[log] = self._watcher_counts.get(log, 0) + 1
        log.due_revision = -1
        try:
            yield log
        finally:
            self._watcher_counts[log] -= 1
            if not self._watcher_counts[log]:
                del self._watcher_counts[log]
                # By then nobody who was here can go on.
                log.due_revision = log.revision + self._kept

    def _begin(self, namespace: Namespace) -> EventLog:
        if len(self._logs) >= self._max_logs:
            unwatched = (
                each for each, log in self._logs.items() if log not in self._watcher_counts
            )
            if (oldest := next(unwatched, None)) is not None:
                self._end(oldest)
        log = self._logs[namespace] = EventLog(namespace.tiers, self._kept)
        log.on_due = lambda _: self._end(namespace)
        log.attach()
        return log

    def _end(self, namespace: Namespace) -> None:
        log = self._logs.pop(namespace)
        log.detach()
        log.changed.set()

    def _dropped(self, namespace: Namespace) -> None:
        if namespace in self._logs:
            self._end(namespace)

    def close(self) -> None:
        """Ends all watching."""
        self._is_closed = True
        for each in list(self._logs):
            self._end(each)


def position_of(revision: int, epoch: int, *, snapshot: bool) -> Position | None:
    """What `watch` begins with; raises InvalidRequestError."""
    if not snapshot:
        return Position(revision, epoch)
    if revision:
        raise InvalidRequestError(
            "start_revision and snapshot are both set: a snapshot begins by itself"
        )
    return None


def _check_epoch(start: Position, log: EventLog) -> None:
    if start.epoch != log.epoch:
        raise EventsLostError(
            f"revision {start.revision} is of epoch {start.epoch:016x}, and revisions count in "
            f"{log.epoch:016x} now; start over with a snapshot"
        )

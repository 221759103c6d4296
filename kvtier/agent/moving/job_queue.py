"""Calls that wait for a thread: loads before prefetches before writes, and none for ever."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from kvtier.agent.moving.read_forecast import Transfer

#: One call in so many is the one that has waited longest, whatever it does.
_TURN_OF_THE_OLDEST = 16


class Kind(IntEnum):
    """What a call does; the lowest goes first."""

    READ = 0
    OTHER = 1
    #: A read for which no load waits.
    PREFETCH = 2
    WRITE = 3

    @property
    def is_read(self) -> bool:
        return self in (Kind.READ, Kind.PREFETCH)


class Job(Transfer):
    """One call: waiting, in a thread's hands, or ended."""

    def __init__(self, call: Callable[[], Any], size_bytes: int, kind: Kind) -> None:
        super().__init__(size_bytes, is_read=kind.is_read)
        self.is_queued = kind is Kind.READ  # others are overtaken
        self.call = call
        self.kind = kind
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_end: Callable[[Any], None] | None = None
        self.is_given_up = False
        #: Its number in the order of arrival; the queue's.
        self.number = 0


class JobQueue:
    """The lowest kind goes first, and of one kind the job that came first.

    Each sixteenth job is the one that has waited longest of all: with n older ones before it, a job
    is overtaken by less than 16 (n + 1) others. Thread-safe.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # its lock guards everything here
        self._waiting: dict[Kind, deque[Job]] = {kind: deque() for kind in Kind}
        self._numbers = itertools.count()
        self._taken = 0
        self._is_closed = False

    def put(self, job: Job) -> None:
        with self._changed:
            self._append(job)
            self._changed.notify()

    def _append(self, job: Job) -> None:
        job.number = next(self._numbers)
        self._waiting[job.kind].append(job)

    def get(self) -> Job | None:
        """The next job, when there is one; None when the queue is closed and empty."""
        with self._changed:
            while not any(self._waiting.values()):
                if self._is_closed:
                    return None
                self._changed.wait()
            self._taken += 1
            lines = [line for line in self._waiting.values() if line]
            if self._taken % _TURN_OF_THE_OLDEST:
                return lines[0].popleft()
            return min(lines, key=lambda line: line[0].number).popleft()

    def change(self, job: Job, kind: Kind) -> None:
        """Gives a job another kind; if it waits, it goes behind those of that kind."""
        with self._changed:
            is_waiting = job in self._waiting[job.kind]
            if is_waiting:
                self._waiting[job.kind].remove(job)
            job.kind = kind
            if is_waiting:
                self._append(job)

    def withdraw(self, job: Job) -> bool:
        """Takes a job out; False if a thread has it already."""
        with self._changed:
            if job not in self._waiting[job.kind]:
                return False
            self._waiting[job.kind].remove(job)
            return True

    def close(self) -> None:
        """Whoever waits in vain is told so; what waits is still handed out."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Ticket:
    """The place of one prefetch or load in the queue of a mover, for whoever may change it.

    The event loop owns it. It may be changed before the call is submitted, and after its end, when
    that has no effect.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.is_dropped = False
        self._on_hurry: Callable[[], None] = lambda: None
        self._on_drop: Callable[[], None] = lambda: None

    def submitted(self, on_hurry: Callable[[], None], on_drop: Callable[[], None]) -> None:
        """The mover hears of changes from now on."""
        self._on_hurry, self._on_drop = on_hurry, on_drop

    def hurry(self) -> None:
        """A load waits for it now."""
        if self.kind is not Kind.READ:
            self.kind, self.is_dropped = Kind.READ, False
            self._on_hurry()

    def drop(self) -> None:
        """Nobody waits for it: it ends at once, unless it has begun."""
        self.is_dropped = True
        self._on_drop()

"""Threads that work on one volume of DISK or on the cluster, and what that says of its health."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from kvtier.agent.moving.job_queue import Job, JobQueue, Kind, Ticket
from kvtier.agent.moving.last_day import LastDay
from kvtier.agent.moving.read_forecast import ReadForecast
from kvtier.scheduling import at_low_priority
from kvtier.tiers.health import Health

__all__ = ["Kind", "Storage", "StorageDownError", "StorageMover", "Ticket"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CHECK_SECONDS = 1.0
_JOIN_SECONDS = 1.0
_DROPPED = "nobody waits for it any more"


class Storage(Protocol):
    """What the threads work on."""

    @property
    def label(self) -> str:
        """For the log: the tier and what it is."""
        ...

    def check(self) -> None:
        """Raises OSError if nothing may be written now; asked once a second. Called by movers."""
        ...

    def probe(self) -> None:
        """Raises OSError if it is not good again. Called by movers."""
        ...

    def verdict(self, error: OSError, *, is_read: bool) -> Health | None:
        """What a call's error says of it; None if it is no error of its own."""
        ...


S = TypeVar("S", bound=Storage)


class StorageDownError(OSError):
    """The volume or the cluster does not do that now; its message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO, reason)


class StorageMover(Generic[S]):
    """Runs calls in `depth` threads: loads, then prefetches, then writes (`job_queue`).

    What an error says of the storage is its own verdict; a call without an answer for
    `timeout_seconds` makes it UNAVAILABLE. A probe asks every `probe_seconds` whether it is good
    again. `run` must be called on the event loop.
    """

    def __init__(
        self,
        storage: S,
        *,
        name: str,
        depth: int,
        timeout_seconds: float,
        probe_seconds: float = 2.0,
    ) -> None:
        self.storage = storage
        self.health = Health.ACTIVE
        self.reason = ""
        self.on_turn: Callable[[], None] = lambda: None
        self.error_count = 0
        self.read_bytes = 0
        self.forecast = ReadForecast(depth)
        self.written_bytes = 0
        self.written_last_day = LastDay(time.monotonic)
        self._timeout_seconds = timeout_seconds
        self._probe_seconds = probe_seconds
        self._is_closed = False
        self._checked_at = 0.0
        self._prefetch_bytes = 0
        self._jobs: set[Job] = set()
        self._queue = JobQueue()
        self._probe: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.threads = [
            threading.Thread(
                target=self._work, args=(number,), name=f"kvtier-{name}-{number}", daemon=True
            )
            for number in range(depth)
        ]
        for thread in self.threads:
            thread.start()

    @property
    def queue_depth(self) -> int:
        return len(self._jobs)

    @property
    def is_readable(self) -> bool:
        return self.health is not Health.UNAVAILABLE

    @property
    def is_writable(self) -> bool:
        return self.health is Health.ACTIVE

    async def run(
        self,
        call: Callable[..., T],
        *args: Any,
        size_bytes: int = 0,
        kind: Kind = Kind.OTHER,
        on_end: Callable[[T | None], None] | None = None,
        ticket: Ticket | None = None,
    ) -> T:
        """The call's result. Raises its OSError, or StorageDownError.

        With a `ticket` the call is of the ticket's kind, and whoever has it may change that.

        `on_end` is called once, on the loop, when the call has really ended, with its result or
        None: that may be long after a timeout or a cancellation, and only then the memory that it
        used may be used for something else.
        """
        kind = kind if ticket is None else ticket.kind
        is_dropped = ticket is not None and ticket.is_dropped
        if is_dropped or not self._admits(kind):
            if on_end is not None:
                on_end(None)
            raise StorageDownError(_DROPPED if is_dropped else self.reason)
        job = self._submit(lambda: call(*args), size_bytes, kind)
        job.on_end = on_end
        if ticket is not None:
            ticket.submitted(lambda: self._hurry(job), lambda: self._withdraw(job))
        result: T = await job.answer
        return result

    def _admits(self, kind: Kind) -> bool:
        return self.is_writable if kind is Kind.WRITE else self.is_readable

    def _submit(self, call: Callable[[], Any], size_bytes: int, kind: Kind) -> Job:
        job = Job(call, size_bytes, kind)
        self._jobs.add(job)
        self._enqueue(job)
        self._queue.put(job)
        if self._watch is None:
            self._keep_watch()
        return job

    def _enqueue(self, job: Job) -> None:
        """Counts what waits to be read, or is being read."""
        self.forecast.enqueue(job)
        if job.kind is Kind.PREFETCH:
            self._prefetch_bytes += job.size_bytes

    def _leave_queue(self, job: Job) -> None:
        self.forecast.leave(job)
        if job.kind is Kind.PREFETCH:
            self._prefetch_bytes -= job.size_bytes

    def _hurry(self, job: Job) -> None:
        if job in self._jobs and job.kind is Kind.PREFETCH:
            self._leave_queue(job)
            self._queue.change(job, Kind.READ)
            job.is_queued = True
            self._enqueue(job)

    def _withdraw(self, job: Job) -> None:
        if job in self._jobs and self._queue.withdraw(job):
            self._ended(job, None, StorageDownError(_DROPPED), 0.0)

    @property
    def prefetch_bytes(self) -> int:
        """Waiting to be read, or being read, without a load that waits."""
        return self._prefetch_bytes

    # Threads.

    def _work(self, number: int) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            job.started_at = time.monotonic()
            self.forecast.running[number] = job
            result, error = None, None
            try:
                if job.answer.done():
                    raise StorageDownError("given up before it began")
                if job.kind is Kind.WRITE:
                    self._check()
                    # The event loop, and whoever reads, get a processor before it.
                    result = at_low_priority(job.call)
                else:
                    result = job.call()
            except BaseException as raised:  # handed to whoever waits
                error = raised
            ended_at = time.monotonic()
            self.forecast.running[number] = None
            try:
                job.answer.get_loop().call_soon_threadsafe(
                    self._ended, job, result, error, ended_at
                )
            except RuntimeError:  # the loop is closed: nobody waits
                return

    def _check(self) -> None:
        if time.monotonic() - self._checked_at >= _CHECK_SECONDS:
            self.storage.check()
            self._checked_at = time.monotonic()

    def _ended(
        self, job: Job, result: object, error: BaseException | None, ended_at: float
    ) -> None:
        if self._is_closed:  # nobody is there any more
            return
        self._jobs.discard(job)
        self._leave_queue(job)
        if error is None:
            self._measure(job, ended_at)
        elif isinstance(error, OSError) and not isinstance(error, StorageDownError):
            if job.kind.is_read and ended_at - job.started_at > self._timeout_seconds / 4:
                self.forecast.note_read(job, ended_at)  # it is as slow as this, at least
            self.note_error(error, is_read=job.kind.is_read)
        try:
            if job.on_end is not None:
                job.on_end(result)
        finally:
            if job.answer.done():  # given up, or cancelled
                pass
            elif error is None:
                job.answer.set_result(result)
            else:
                job.answer.set_exception(error)

    def _measure(self, job: Job, ended_at: float) -> None:
        """A call went well."""
        if job.kind is Kind.WRITE:
            self.written_bytes += job.size_bytes
            self.written_last_day.add(job.size_bytes)
            self.forecast.note_write(job, ended_at)
        if job.kind.is_read:
            self.read_bytes += job.size_bytes
            self.forecast.note_read(job, ended_at)

    # Health.

    def note_error(self, error: OSError, *, is_read: bool) -> None:
        """A call failed, in whole or in part."""
        verdict = self.storage.verdict(error, is_read=is_read)
        if verdict is None:
            return
        self.error_count += 1
        if verdict > self.health:
            self._turn(verdict, error.strerror or str(error))

    def _turn(self, health: Health, reason: str) -> None:
        if health is Health.ACTIVE:
            log.warning("%s is good again", self.storage.label)
        elif health > self.health:
            log.warning("%s is %s: %s", self.storage.label, health.name, reason)
        self.health, self.reason = health, reason
        if health is not Health.ACTIVE and self._probe is None:
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_good())
        self.on_turn()

    async def _probe_until_good(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._probe_seconds)
                try:
                    await self._submit(self._try_to_write, 0, Kind.OTHER).answer
                    break
                except OSError as error:
                    self._note_probe(error)
        finally:
            self._probe = None
        self._turn(Health.ACTIVE, "")

    def _note_probe(self, error: OSError) -> None:
        """What it says now may be better than what was: a server that is back, and full."""
        reason = error.strerror or str(error)
        if not isinstance(error, StorageDownError):
            verdict = self.storage.verdict(error, is_read=False) or self.health
            if verdict < self.health:
                self._turn(verdict, reason)
        self.reason = reason

    def _try_to_write(self) -> None:
        self._checked_at = 0.0
        self._check()
        self.storage.probe()

    def _keep_watch(self) -> None:
        """Looks for calls without an answer for as long as there are any."""
        self._watch = None
        if not self._jobs:
            return
        now = time.monotonic()
        if any(
            not job.is_given_up and job.started_at and now - job.started_at > self._timeout_seconds
            for job in self._jobs
        ):
            self._give_up()
        delay = self._timeout_seconds / 4
        self._watch = asyncio.get_running_loop().call_later(delay, self._keep_watch)

    def _give_up(self) -> None:
        reason = f"no answer for {self._timeout_seconds:g} s"
        if self.is_readable:
            self._turn(Health.UNAVAILABLE, reason)
        for job in self._jobs:
            job.is_given_up = True
            if not job.answer.done():
                job.answer.set_exception(StorageDownError(reason))

    async def close(self) -> bool:
        """Waits a moment for what is running; False if a thread hangs and is left behind."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
        self._queue.close()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        await asyncio.sleep(0)  # what has ended is heard of while the books are open
        self._is_closed = True
        return not any(thread.is_alive() for thread in self.threads)

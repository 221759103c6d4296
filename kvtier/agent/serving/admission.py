"""What is let in while much is under way: refused is what does without first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from kvtier.errors import OverloadedError


class Work(IntEnum):
    """What is asked for. Of those that move data, the greatest goes without first."""

    #: Lookups, renewals, releases: metadata, which has room of its own.
    ASK = 0
    LOAD = 1
    STORE = 2
    DEMOTION = 3
    PREFETCH = 4


#: How much of the room for data may be taken when one more comes in.
_SHARES = {
    Work.ASK: 1.0,
    Work.LOAD: 1.0,
    Work.STORE: 0.85,
    Work.DEMOTION: 0.7,
    Work.PREFETCH: 0.5,
}
_SHORTEST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 5.0
#: Of calls, in how long one takes.
_REMEMBERED = 16


@dataclass(frozen=True)
class AdmissionLimits:
    """At one time, of all sessions together; one session has at most `session_share` of each.

    `calls` holds twice: for those that move data, and for all others.
    """

    calls: int = 256
    blocks: int = 1 << 17
    size_bytes: int = 64 << 30
    streams: int = 32
    #: What streams are, and which key says how many there may be.
    streams_are: tuple[str, str] = ("streams", "streams.max_streams")
    session_share: float = 0.5


class Room:
    """So much of something, for all sessions; what is larger than that may come in alone."""

    def __init__(self, limit: int, what: str, key: str, session_share: float = 1.0) -> None:
        self.in_use = 0
        self._limit = limit
        self._session_limit = max(1, int(limit * session_share))
        self._what = what
        self._key = key
        self._of_session: Counter[bytes] = Counter()

    def allows(self, share: float, size: int = 1) -> bool:
        """Whether so much more keeps within a share of it."""
        return not self.in_use or self.in_use + size <= math.ceil(self._limit * share)

    def require(self, session: bytes, size: int, share: float) -> None:
        """Raises OverloadedError if so much more is too much, in all or of this session."""
        if self.allows(share, size):
            mine = self._of_session.get(session, 0)
            if not (session and size and mine) or mine + size <= self._session_limit:
                return
            raise OverloadedError(
                f"this session has {mine} {self._what} in flight; {self._session_limit} are as "
                f"many as limits.max_session_share of {self._key} allows"
            )
        raise OverloadedError(
            f"{self.in_use} {self._what} are in flight; {self._key} allows {self._limit}, and what "
            "is needed less makes way before"
        )

    def enter(self, session: bytes, size: int) -> None:
        self.in_use += size
        if session:
            self._of_session[session] += size

    def leave(self, session: bytes, size: int) -> None:
        self.in_use -= size
        if session:
            self._of_session[session] -= size
            if not self._of_session[session]:
                del self._of_session[session]


class Admission:
    """Lets calls in before any work is done for them, or raises OverloadedError.

    What moves data makes way as soon as its share of any of the bounds is taken, whoever took it.

    Sessions are told apart by their tokens, genuine or not. `refused` counts by kind. `on_relief`
    is called when what had to wait may go on.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float] = lambda: 0.0) -> None:
        share = limits.session_share
        self.refused: Counter[Work] = Counter()
        self.on_relief: list[Callable[[], None]] = []
        self._clock = clock
        self._asking = Room(limits.calls, "calls", "limits.max_calls", share)
        self._calls = Room(limits.calls, "calls that move data", "limits.max_calls", share)
        self._blocks = Room(limits.blocks, "blocks", "limits.max_blocks", share)
        self._bytes = Room(limits.size_bytes, "bytes", "limits.max_in_flight", share)
        self._streams = Room(limits.streams, *limits.streams_are, share)
        self._data = self._calls, self._blocks, self._bytes, self._streams
        self._is_put_off = False
        self._mean_seconds = 0.0

    @contextmanager
    def call(self, work: Work, session: bytes | None) -> Iterator[None]:
        """A call, from its arrival to its answer; nothing of it is parsed yet."""
        with self._within({self._asking if work is Work.ASK else self._calls: 1}, work, session):
            yield

    @contextmanager
    def stream(self, work: Work, session: bytes | None) -> Iterator[None]:
        """A stream of blocks."""
        with self._within({self._streams: 1}, work, session):
            yield

    @contextmanager
    def blocks(
        self, work: Work, session: bytes | None, count: int, size_bytes: int
    ) -> Iterator[None]:
        """What a call asks for: slots, and their bytes."""
        with self._within({self._blocks: count, self._bytes: size_bytes}, work, session):
            yield

    def allows(self, work: Work) -> bool:
        """Whether something in the background may go on. Each False counts as a refusal, but of
        demotion, which waits for `on_relief`, only the first one.
        """
        if self._has_room(work):
            return True
        if work is Work.DEMOTION and self._is_put_off:
            return False
        self.refused[work] += 1
        self._is_put_off |= work is Work.DEMOTION
        return False

    @property
    def refused_calls(self) -> int:
        """Without what the agent wanted itself."""
        return self.refused.total() - self.refused[Work.DEMOTION]

    @contextmanager
    def _within(self, sizes: dict[Room, int], work: Work, session: bytes | None) -> Iterator[None]:
        name, since = session or b"", self._clock()
        try:
            for room in self._data if work is not Work.ASK else sizes:
                room.require(name, sizes.get(room, 0), _SHARES[work])
        except OverloadedError as error:
            self.refused[work] += 1
            error.retry_after_seconds = self._retry_after_seconds
            raise
        for room, size in sizes.items():
            room.enter(name, size)
        try:
            yield
        finally:
            for room, size in sizes.items():
                room.leave(name, size)
            self._left(work, self._clock() - since)

    @property
    def _retry_after_seconds(self) -> float:
        """About as long as one takes that moves data."""
        return min(max(self._mean_seconds, _SHORTEST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS)

    def _left(self, work: Work, seconds: float) -> None:
        if work is not Work.ASK:
            self._mean_seconds += (seconds - self._mean_seconds) / _REMEMBERED
        if self._is_put_off and self._has_room(Work.DEMOTION):
            self._is_put_off = False
            for tell in self.on_relief:
                tell()

    def _has_room(self, work: Work) -> bool:
        return all(room.allows(_SHARES[work]) for room in self._data)

"""When a read of some device will have ended."""

from __future__ import annotations

import math
import time
from collections import deque

from kvtier.agent.placing.device_speed import DeviceSpeed

#: A read is cut so that a piece takes no longer than this: what it brings is there early, and who
#: gives it up leaves nothing behind that keeps a thread for long.
_PIECE_SECONDS = 0.02
#: What lasts so much longer than expected is late.
_LATE_SECONDS = 0.002
_MIB = 1 << 20


class Transfer:
    """One call, as far as it matters here; `started_at` is 0.0 until it begins."""

    def __init__(self, size_bytes: int, *, is_read: bool) -> None:
        self.size_bytes = size_bytes
        self.is_read = is_read
        self.is_queued = is_read
        self.started_at = 0.0


class ReadForecast:
    """Of `depth` threads on one device, reads first come first served.

    Estimates hold back nothing that is known: what waits, what runs, and for how long. `running`
    has one entry for each thread, which it writes itself; all else belongs to the event loop.
    `measured_at` is when the latest read ended, on the clock of `time.monotonic`.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.running: list[Transfer | None] = [None] * depth
        self.reading, self.writing = DeviceSpeed(), DeviceSpeed()
        self.measured_at = -math.inf
        self._spans: deque[tuple[float, float]] = deque(maxlen=2 * depth)
        self._queued_bytes = self._queued_calls = 0

    def enqueue(self, transfer: Transfer) -> None:
        if transfer.is_queued:
            self._queued_bytes += transfer.size_bytes
            self._queued_calls += 1

    def leave(self, transfer: Transfer) -> None:
        """It has ended, or will not begin; may be said twice."""
        if transfer.is_queued:
            transfer.is_queued = False
            self._queued_bytes -= transfer.size_bytes
            self._queued_calls -= 1

    def note_write(self, transfer: Transfer, ended_at: float) -> None:
        self.writing.note(transfer.size_bytes, max(0.0, ended_at - transfer.started_at))

    def note_read(self, transfer: Transfer, ended_at: float) -> None:
        """Of reads that share the device each is as slow as all are together."""
        seconds = max(0.0, ended_at - transfer.started_at)
        others = [
            (each.started_at, ended_at)
            for each in self.running
            if each is not None and each.is_read and each is not transfer
        ]
        beside = sum(
            max(0.0, min(ended_at, end) - max(transfer.started_at, start))
            for start, end in (*others, *self._spans)
        )
        share = min(float(self.depth), 1 + beside / seconds) if seconds else 1.0
        self._spans.append((transfer.started_at, ended_at))
        self.reading.note(transfer.size_bytes * share, seconds)
        self.measured_at = ended_at

    @property
    def seconds_per_mib(self) -> float:
        """What reading 1 MiB takes, by what was measured of late; 0.0 until something was."""
        return self.reading.seconds(_MIB) if self.measured_at > -math.inf else 0.0

    def piece_bytes(self, most_bytes: int) -> int:
        """How much to read with one call: what takes a moment, and at most so much."""
        return min(most_bytes, int(_PIECE_SECONDS / (self.reading.seconds_per_byte or 1e-12)))

    def seconds_until_read(self, size_bytes: int, calls: int = 1) -> float:
        """When so much would be here if it were asked for now, in so many calls: behind what waits
        already, and behind writes that have all threads.

        What runs for longer than it should is expected to run for as long again.
        """
        reading, queued, now = self.reading, self._queued_bytes, time.monotonic()
        rounds = -(-(self._queued_calls + calls) // self.depth)
        told = reading.seconds(queued + size_bytes, rounds)
        if queued:
            told = max(told, reading.seconds(queued) + size_bytes * reading.seconds_per_byte)
        running = [each for each in self.running if each is not None]
        reads = [each for each in running if each.is_read]
        late = 1.0
        for each in reads:
            lasts = now - each.started_at
            expected = reading.seconds(each.size_bytes * len(reads))
            if lasts > expected + _LATE_SECONDS:
                late = max(late, 2 * lasts / expected)
        blocked = 0.0
        if len(running) == self.depth and not reads:
            blocked = min(self._seconds_left(each, now) for each in running)
        return blocked + late * told

    def _seconds_left(self, transfer: Transfer, now: float) -> float:
        lasts = max(0.0, now - transfer.started_at)
        expected = self.writing.seconds(transfer.size_bytes)
        return expected - lasts if lasts < expected else lasts

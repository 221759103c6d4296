"""How long a device takes, learned from what it took."""

from __future__ import annotations

from collections import deque

#: Until something has been measured.
_FIRST_LATENCY_SECONDS = 0.001
_FIRST_SECONDS_PER_BYTE = 1e-9
_WINDOW = 12
#: Weight of a measurement against the next one.
_FADING = 0.75
#: What is so many times off, and by so much, is of another device than was measured before.
_CHANGE = 3.0
_NOTICED_SECONDS = 0.002
#: Sizes that differ by less than this, relative to their mean, do not tell latency from bandwidth.
_SPREAD = 0.3


class DeviceSpeed:
    """Latency and seconds per byte, fitted to the latest calls: least squares, in which a call
    counts three quarters of the next one.

    Nothing is extrapolated in a device's favour: less than was ever measured is expected to take as
    long as the least measured, more of it in proportion. A call that took more than three times
    what was expected is doubted until the next one does, too; then, and at the first that takes
    less than a third, all from before is forgotten.
    """

    def __init__(self) -> None:
        self.latency_seconds = _FIRST_LATENCY_SECONDS
        self.seconds_per_byte = _FIRST_SECONDS_PER_BYTE
        self._least_seconds = _FIRST_LATENCY_SECONDS
        self._seen: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._doubted: tuple[float, float] | None = None

    def seconds(self, size_bytes: float, rounds: int = 1) -> float:
        """What moving so much is expected to take, in `rounds` calls one after the other."""
        told = rounds * self.latency_seconds + size_bytes * self.seconds_per_byte
        return max(told, self._least_seconds)

    def note(self, size_bytes: float, seconds: float) -> None:
        """A call took so long. Of `n` that ran side by side each counts for n times its size."""
        measured = (size_bytes, seconds)
        expected = self.seconds(size_bytes)
        if not self._seen:
            pass
        elif seconds > _CHANGE * expected and seconds - expected > _NOTICED_SECONDS:
            if self._doubted is None:
                self._doubted = measured
                return
            self._seen.clear()
            self._seen.append(self._doubted)
        elif seconds < expected / _CHANGE and expected - seconds > _NOTICED_SECONDS:
            self._seen.clear()
        self._doubted = None
        self._seen.append(measured)
        self._fit()

    def _fit(self) -> None:
        count = len(self._seen)
        weights = [_FADING ** (count - index) for index in range(1, count + 1)]
        total = sum(weights)
        weighed = list(zip(weights, self._seen, strict=True))
        size = sum(weight * size for weight, (size, _) in weighed) / total
        seconds = sum(weight * took for weight, (_, took) in weighed) / total
        variance = sum(weight * (each - size) ** 2 for weight, (each, _) in weighed) / total
        if variance < (_SPREAD * size) ** 2 or not size:
            self.seconds_per_byte = seconds / size if size else _FIRST_SECONDS_PER_BYTE
            self.latency_seconds = 0.0 if size else seconds
            self._least_seconds = seconds
            return
        together = sum(w * (each - size) * (took - seconds) for w, (each, took) in weighed) / total
        self.seconds_per_byte = max(0.0, together / variance)
        self.latency_seconds = seconds - self.seconds_per_byte * size
        if self.latency_seconds < 0:
            self.latency_seconds, self.seconds_per_byte = 0.0, seconds / size
        least = min(each for each, _ in self._seen)
        self._least_seconds = self.latency_seconds + self.seconds_per_byte * least

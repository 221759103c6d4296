"""When loading beats computing: for how many blocks to wait, and for how long."""

from __future__ import annotations

from collections.abc import Iterable

#: Estimates are taken for so much longer than they are.
CAUTION = 1.25
#: The part of what computing takes that a wait may cost a request which gets nothing for it.
SHARE = 0.02
#: The part that it may cost because its tier was trusted: one of which nothing new is known, one
#: that was just measured, and one that broke its word.
TRUSTED, CONFIRMED, DISTRUSTED = 0.5, 1.0, 0.0


def worth_waiting(runs: Iterable[tuple[int, float]], compute_seconds: float) -> int:
    """How many leading blocks to load rather than compute: the n for which most time is saved.

    `runs` are consecutive blocks as (count, seconds until all of them are ready), computing takes
    `compute_seconds` for each block. Loading the first n saves n * compute_seconds, and costs the
    time until the slowest of them is ready, taken for a quarter longer than estimated. Not the
    first block that is late ends it: a tier with a long latency may be late for the first blocks
    and early for many. Nor do blocks that are ready at once pay for slow ones behind them: those
    must save time themselves. Within a run times grow evenly, so only its end can be the best n.
    Of two that save the same the greater: it leaves the worker more of its time.
    """
    best = count = 0
    most_saved = ready_seconds = 0.0
    for blocks, seconds in runs:
        count += blocks
        ready_seconds = max(ready_seconds, seconds)
        saved = count * compute_seconds - CAUTION * ready_seconds
        if saved >= most_saved:
            best, most_saved = count, saved
    return best


def allowance(
    blocks: int, compute_seconds: float, expected_seconds: float, trusted_share: float = TRUSTED
) -> float:
    """How long to wait for something that is expected in so many seconds, and may not come: a small
    part of what computing all `blocks` takes; and the time itself, if that is not a greater part
    than `trusted_share`."""
    total = blocks * compute_seconds
    trusted = CAUTION * expected_seconds
    return SHARE * total + (trusted if trusted <= trusted_share * total else 0.0)


class Patience:
    """Whether to go on waiting for blocks that arrive one after the other, times in seconds.

    At each moment the wait has cost the time since it began and has saved what computing the blocks
    here would have taken. It ends when this balance is worse by `allowed_seconds` than it was at
    its best (Page's cumulative sum test, Biometrika 1954): soon after a tier stalls, or becomes
    slower than computing, however much it had saved before; and never has a wait cost more than
    `allowed_seconds` beyond what it saved.
    """

    def __init__(self, now: float, compute_seconds: float, allowed_seconds: float) -> None:
        self._began = now
        self._compute_seconds = compute_seconds
        self._allowed_seconds = allowed_seconds
        self._best = 0.0

    def seconds_left(self, now: float, arrived: int) -> float:
        """How much longer to wait for the next block, if so many have arrived; 0.0: no longer."""
        cost = now - self._began - arrived * self._compute_seconds
        self._best = min(self._best, cost)
        return max(0.0, self._allowed_seconds - (cost - self._best))

"""What happened between samples: rates and shares of hits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import Stats, TierStats

_MOST_SAMPLES = 600
#: Rates are those of so many seconds, so that they can be read.
_SPAN_SECONDS = 3.0


@dataclass(frozen=True)
class TierRates:
    """A second of one tier. `hit_share` is of the blocks that were looked up there, if any were."""

    hit_share: float | None = None
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    promoted: float = 0.0
    demoted: float = 0.0
    evicted: float = 0.0


class Rates:
    """The last samples of one agent; what an earlier one said is forgotten."""

    def __init__(self) -> None:
        self._samples: deque[Stats] = deque(maxlen=_MOST_SAMPLES)

    def add(self, stats: Stats) -> None:
        if self._samples and self._samples[-1].epoch != stats.epoch:
            self._samples.clear()
        self._samples.append(stats)

    def clear(self) -> None:
        self._samples.clear()

    def __bool__(self) -> bool:
        return len(self._samples) > 1

    def of(self, tier: int, device: str = "") -> TierRates:
        """Over the last seconds; of one device of GPU."""
        if not self:
            return TierRates()
        last = self._samples[-1]
        first = next(
            (
                each
                for each in reversed(list(self._samples)[:-1])
                if _seconds(each, last) >= _SPAN_SECONDS
            ),
            self._samples[0],
        )
        before, after = _tier(first, tier, device), _tier(last, tier, device)
        seconds = _seconds(first, last)
        if before is None or after is None or seconds <= 0:
            return TierRates()

        def rate(field: str) -> float:
            return _gain(before, after, field) / seconds

        return TierRates(
            hit_share=_share(before, after),
            read_bytes=_bytes(before, after, "read_bytes", "hit_count") / seconds,
            written_bytes=_bytes(before, after, "written_bytes", "stored_count") / seconds,
            promoted=rate("promoted_count"),
            demoted=rate("demoted_count"),
            evicted=rate("evicted_count"),
        )

    def hits(self, count: int, tier: int | None = None) -> list[float | None]:
        """The share of hits of each of the last `count` intervals, None where nothing was asked;
        of a tier, or of all together."""
        recent = list(self._samples)[-count - 1 :]
        return [_hits(*pair, tier) for pair in pairwise(recent)]

    def hit_share(self) -> float | None:
        """Of all tiers, over the samples that there are."""
        return _hits(self._samples[0], self._samples[-1], None) if self else None


def _hits(before: Stats, after: Stats, tier: int | None) -> float | None:
    """HOST is asked first, and counts all that is asked."""
    if tier is not None:
        pair = _tier(before, tier), _tier(after, tier)
        return None if pair[0] is None or pair[1] is None else _share(pair[0], pair[1])
    asked, found = 0, 0
    for one in after.tiers:
        other = _tier(before, one.tier, one.device)
        if other is not None:
            asked = max(asked, _gain(other, one, "lookup_count"))
            found += _gain(other, one, "lookup_hit_count")
    return min(1.0, found / asked) if asked else None


def _share(before: TierStats, after: TierStats) -> float | None:
    asked = _gain(before, after, "lookup_count")
    return min(1.0, _gain(before, after, "lookup_hit_count") / asked) if asked else None


def _bytes(before: TierStats, after: TierStats, field: str, blocks: str) -> float:
    """Memory counts blocks, and they have about the size of those that are there."""
    if after.tier > block_pb2.TIER_HOST:
        return _gain(before, after, field)
    size = after.used_bytes / after.block_count if after.block_count else 0.0
    return _gain(before, after, blocks) * size


def _gain(before: TierStats, after: TierStats, field: str) -> int:
    """What a namespace counted is gone with it."""
    gain: int = getattr(after, field) - getattr(before, field)
    return max(0, gain)


def _tier(stats: Stats, tier: int, device: str = "") -> TierStats | None:
    wanted = (tier, device)
    return next((each for each in stats.tiers if (each.tier, each.device) == wanted), None)


def _seconds(before: Stats, after: Stats) -> float:
    return (after.sample_time.ToNanoseconds() - before.sample_time.ToNanoseconds()) / 1e9


def sparkline(shares: Sequence[float | None], width: int, marks: str) -> str:
    """The last `width` values between 0 and 1, the newest at the right; a blank for None."""
    top = len(marks) - 1
    drawn = "".join(" " if each is None else marks[round(each * top)] for each in shares[-width:])
    return drawn.rjust(width)

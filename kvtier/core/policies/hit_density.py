"""How many hits a second to expect of a chain, by its class and age."""

from __future__ import annotations

import math
from array import array

import numpy as np
import numpy.typing as npt

from kvtier.core.policies.expecting import chance_of_return

BINS = 32
_FIRST_SECONDS = 0.5
_FIRST_TURNS = 12
_LATER_TURNS = 3
_PAUSES = 6
_HEADS = 6
_SHORTEST_PAUSE = 2
CLASSES = _FIRST_TURNS + _LATER_TURNS * _PAUSES + _HEADS
NO_CLASS = 255

#: Bin 0 begins at age 0, bin 1 at 0.5 s; each next is half an octave later. The last has no end.
_EDGES = np.array([0.0, *(_FIRST_SECONDS * 2 ** (each / 2) for each in range(BINS - 1))])
_AGES = tuple(_EDGES.tolist())
_WIDTHS = np.diff(_EDGES, append=2 * _EDGES[-1])
_GROUPS = np.repeat([0, 1, 2], [_FIRST_TURNS, _LATER_TURNS * _PAUSES, _HEADS])

_HALF_LIFE_REQUESTS = 4000
_PSEUDO_EVENTS = 0.2
#: Of what has never been seen: the longer ago, the less likely at any moment.
_PRIOR_RATE = 0.3 / (_EDGES + _WIDTHS / 2)

_Table = npt.NDArray[np.float64]


def first_class(new_blocks: int) -> int:
    """The class of a chain in its first turn."""
    return min(max(new_blocks, 1).bit_length() - 1, _FIRST_TURNS - 1)


def later_class(turn: int, pause: float) -> int:
    """`pause` is the running mean of log2 of the seconds between turns, plus one."""
    group = 0 if turn == 2 else 1 if turn <= 4 else 2
    return _FIRST_TURNS + group * _PAUSES + _pause_class(pause, _PAUSES)


def head_class(pause: float) -> int:
    return _FIRST_TURNS + _LATER_TURNS * _PAUSES + _pause_class(pause, _HEADS)


def _pause_class(pause: float, classes: int) -> int:
    return min(max(int(pause - _SHORTEST_PAUSE), 0), classes - 1)


def age_bin(age: float) -> int:
    if age < _FIRST_SECONDS:
        return 0
    return min(int(2 * math.log2(age / _FIRST_SECONDS)) + 1, BINS - 1)


class HitDensity:
    """Counts returns and waiting by class and age, decayed, and ranks classes by them.

    The rate at which chains of a class come back at an age is estimated as Kaplan and Meier do
    (returns over the time that chains were waiting), smoothed over neighbouring ages and shrunk
    from the class to its group to all. The index of a class at an age is the best ratio of
    expected hits to seconds of holding, over all rules "hold until age T" (Gittins, 1979).
    """

    def __init__(self) -> None:
        self._events = np.zeros((CLASSES, BINS))
        self._waiting = np.zeros((CLASSES, BINS))
        self._counted_until = -math.inf
        self.index: list[list[float]] = []
        self._rank()

    def chance(self, chain_class: int, age: float, within_seconds: float) -> float:
        """That a chain of this age comes back within a time."""
        return chance_of_return(self._rates[chain_class], _AGES, age, within_seconds)

    def returned(self, chain_class: int, last: float, now: float) -> None:
        """A chain that was last asked for at `last` has been asked for again."""
        self._events[chain_class, age_bin(now - last)] += 1
        self.ended(chain_class, last, now)

    def ended(self, chain_class: int, last: float, now: float) -> None:
        """Nobody waits for it any more: counts the time since the last refresh."""
        age, counted = now - last, max(0.0, self._counted_until - last)
        first, final = age_bin(counted), age_bin(age)
        waiting = self._waiting[chain_class]
        if first == final:
            waiting[final] += age - counted
            return
        waiting[first] += _EDGES[first + 1] - counted
        if final > first + 1:
            waiting[first + 1 : final] += _WIDTHS[first + 1 : final]
        waiting[final] += age - _EDGES[final]

    def refresh(self, classes: array[int], last: array[float], now: float, requests: int) -> None:
        """Counts the time that living chains have waited, and ranks anew."""
        step = 1 + len(classes) // 16384  # a sample of them is enough
        kinds = np.frombuffer(classes, np.uint8)[::step]
        alive = kinds != NO_CLASS
        kinds = kinds[alive].astype(np.int64)
        since = np.frombuffer(last, np.float64)[::step][alive]
        self._waiting += step * (
            _waited(kinds, now - since)
            - _waited(kinds, np.maximum(0.0, self._counted_until - since))
        )
        self._counted_until = now
        self._rank()
        decay = 0.5 ** (requests / _HALF_LIFE_REQUESTS)
        self._events *= decay
        self._waiting *= decay

    def _rank(self) -> None:
        events, waiting = _smooth(self._events), _smooth(self._waiting)
        everything = _shrink(events.sum(0), waiting.sum(0), _PRIOR_RATE)
        rates = np.empty((CLASSES, BINS))
        for group in range(3):
            members = group == _GROUPS
            rate = _shrink(events[members].sum(0), waiting[members].sum(0), everything)
            rates[members] = _shrink(events[members], waiting[members], rate)
        self._rates: list[list[float]] = rates.tolist()
        hits = -np.expm1(-rates * _WIDTHS)
        seconds = hits / rates
        self.index = [_gittins(*row) for row in zip(hits.tolist(), seconds.tolist(), strict=True)]


def _waited(kinds: npt.NDArray[np.int64], ages: _Table) -> _Table:
    """The seconds that chains of some ages have spent in each bin, by class."""
    bins = np.zeros(len(ages), np.int64)
    old = ages >= _FIRST_SECONDS
    bins[old] = np.minimum(2 * np.log2(ages[old] / _FIRST_SECONDS) + 1, BINS - 1).astype(np.int64)
    cells, size = kinds * BINS + bins, CLASSES * BINS
    count = np.bincount(cells, minlength=size).reshape(CLASSES, BINS)
    inside = np.bincount(cells, ages - _EDGES[bins], size).reshape(CLASSES, BINS)
    older = count.sum(1, keepdims=True) - count.cumsum(1)
    result: _Table = inside + older * _WIDTHS
    return result


def _smooth(table: _Table) -> _Table:
    padded = np.pad(table, ((0, 0), (1, 1)), mode="edge")
    smooth: _Table = padded[:, :-2] / 4 + padded[:, 1:-1] / 2 + padded[:, 2:] / 4
    return smooth


def _shrink(events: _Table, waiting: _Table, prior: _Table) -> _Table:
    rate: _Table = (events + _PSEUDO_EVENTS) / (waiting + _PSEUDO_EVENTS / prior)
    return rate


def _gittins(hits: list[float], seconds: list[float]) -> list[float]:
    """For each bin the best ratio of hits to seconds from there on.

    From the last bin back, following bins are taken in as long as their own ratio is better.
    """
    index = [0.0] * BINS
    stack: list[tuple[float, float, float]] = []
    for each in range(BINS - 1, -1, -1):
        hit, time, stay = hits[each], seconds[each], 1 - hits[each]
        while stack and stack[-1][0] * time > hit * stack[-1][1]:
            later_hit, later_time, later_stay = stack.pop()
            hit += stay * later_hit
            time += stay * later_time
            stay *= later_stay
        stack.append((hit, time, stay))
        index[each] = hit / time
    return index

"""How often something was seen lately, about."""

from __future__ import annotations

from typing import Final

import numpy as np

_ROWS: Final = 4
_LEAST_WIDTH: Final = 1 << 10
_MOST_COUNT: Final = 15
_SAMPLE_PER_COUNTER: Final = 10
_AGEING_STEP: Final = 1 << 16
_MASK: Final = (1 << 64) - 1
_MIX: Final = 0x9E3779B97F4A7C15


class Sketch:
    """A count-min sketch (Cormode and Muthukrishnan, Journal of Algorithms 2005) of counters up to
    15, with conservative update, that are halved again and again (Einziger et al., TOS 2017).

    There are at least as many counters in a row as `width` says; when that grows, counting starts
    anew. Counters are halved after ten additions for each, 64 KiB of them with each addition, so
    that no call takes long. It adds up to four bytes for each unit of width, or eight just after
    it grew.
    """

    def __init__(self) -> None:
        self._mask = 0
        self._aged = 0
        self._left = 0
        self._counters = bytearray()
        self.widen(_LEAST_WIDTH)

    def widen(self, width: int) -> None:
        """At least so many counters a row from now on."""
        if width <= self._mask + 1 and self._counters:
            return
        size = 1 << max(_LEAST_WIDTH, width).bit_length()
        self._mask = size - 1
        self._counters = bytearray(_ROWS * size)
        self._aged = len(self._counters)
        self._left = _SAMPLE_PER_COUNTER * size

    def add(self, fingerprint: int) -> None:
        """One more of what has this number of 64 bits."""
        counters, mask = self._counters, self._mask
        mixed = fingerprint * _MIX & _MASK
        step = mixed >> 40 | 1
        one = (mixed >> 16 & mask) * _ROWS
        two = ((mixed >> 16) + step & mask) * _ROWS + 1
        three = ((mixed >> 16) + 2 * step & mask) * _ROWS + 2
        four = ((mixed >> 16) + 3 * step & mask) * _ROWS + 3
        least = min(counters[one], counters[two], counters[three], counters[four])
        if least < _MOST_COUNT:
            for place in (one, two, three, four):
                if counters[place] == least:
                    counters[place] = least + 1
        self._left -= 1
        if self._left <= 0 or self._aged < len(counters):
            self._age()

    def estimate(self, fingerprint: int) -> int:
        counters, mask = self._counters, self._mask
        mixed = fingerprint * _MIX & _MASK
        step, place = mixed >> 40 | 1, mixed >> 16
        return min(counters[(place + row * step & mask) * _ROWS + row] for row in range(_ROWS))

    def _age(self) -> None:
        """Halves the next counters; of all when it has come around."""
        if self._left <= 0:
            self._left = _SAMPLE_PER_COUNTER * (self._mask + 1)
            self._aged = 0
        view = np.frombuffer(self._counters, np.uint8)[self._aged : self._aged + _AGEING_STEP]
        view >>= 1
        self._aged += len(view)

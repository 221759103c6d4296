"""A leak is told from what comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from tests.faults.blocks import MIB
from tests.soak.growth import Sample, leaks

_LIMIT = 64 * MIB


def _samples(change: Callable[[Sample, float], Sample], minutes: int = 30) -> list[Sample]:
    """Caches fill for a while, and all figures go up and down."""
    random = Random(1)
    found = []
    for second in range(0, minutes * 60, 5):
        filled = min(1.0, second / (minutes * 60 / 4))
        usual = Sample(
            float(second),
            int(100 * MIB + 80 * MIB * filled + random.uniform(-8, 8) * MIB),
            int(_LIMIT * filled),
            40 + random.randrange(9),
            int(60 + 60 * filled + random.uniform(-20, 20)),
            20 + random.randrange(3),
        )
        found.append(change(usual, second / 60))
    return found


def test_what_fills_and_fluctuates_is_no_leak() -> None:
    assert leaks(_samples(lambda usual, _: usual), _LIMIT) == []


@pytest.mark.parametrize(
    ("name", "per_minute"), [("memory_bytes", 2 * MIB), ("descriptors", 2), ("threads", 1)]
)
def test_what_grows_all_the_time_is_a_leak(name: str, per_minute: int) -> None:
    def grow(usual: Sample, minutes: float) -> Sample:
        return replace(usual, **{name: getattr(usual, name) + int(per_minute * minutes)})

    [found] = leaks(_samples(grow), _LIMIT)
    assert found.startswith(name)


def test_shared_memory_has_a_limit() -> None:
    def exceed(usual: Sample, minutes: float) -> Sample:
        return replace(usual, shared_bytes=usual.shared_bytes + 4096 * (minutes == 20))

    [found] = leaks(_samples(exceed), _LIMIT)
    assert found.startswith("shared memory")


def test_a_short_time_tells_nothing_of_growth() -> None:
    assert leaks(_samples(lambda usual, _: usual, 1), _LIMIT) == []

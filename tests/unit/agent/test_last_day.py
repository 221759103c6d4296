"""`agent.moving.last_day`."""

from __future__ import annotations

from kvtier.agent.moving.last_day import LastDay

HOUR = 3600.0


def test_bytes_count_for_a_day() -> None:
    now = 0.0
    day = LastDay(lambda: now)
    for hour in range(48):
        now = hour * HOUR
        day.add(1)
    assert day.total_bytes == 24
    now += 12 * HOUR
    assert day.total_bytes == 12
    now += 1000 * HOUR
    assert day.total_bytes == 0


def test_a_clock_that_goes_back_loses_nothing() -> None:
    now = 100 * HOUR
    day = LastDay(lambda: now)
    day.add(1)
    now = 0.0
    day.add(2)
    assert day.total_bytes == 3

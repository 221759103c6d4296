"""`agent.placing.device_speed`: latency and bandwidth are told apart, and change."""

from __future__ import annotations

from random import Random

import pytest

from kvtier.agent.placing.device_speed import DeviceSpeed

MIB = 1 << 20


def measured(latency: float, per_byte: float, calls: int, seed: int = 0) -> DeviceSpeed:
    speed = DeviceSpeed()
    meet(speed, latency, per_byte, calls, seed)
    return speed


def meet(speed: DeviceSpeed, latency: float, per_byte: float, calls: int, seed: int = 0) -> None:
    random = Random(seed)
    for _ in range(calls):
        size = random.choice((1, 2, 4, 8)) * MIB
        speed.note(size, (latency + per_byte * size) * random.uniform(0.95, 1.05))


@pytest.mark.parametrize(
    ("latency", "per_byte"), [(0.0001, 5e-10), (0.01, 1e-8), (0.0, 1e-6), (1.0, 1e-9), (1.0, 1e-6)]
)
def test_latency_and_bandwidth_are_told_apart(latency: float, per_byte: float) -> None:
    speed = measured(latency, per_byte, 20)
    for size, rounds in ((2 * MIB, 1), (8 * MIB, 1), (256 * MIB, 32)):
        right = latency * rounds + per_byte * size
        assert speed.seconds(size, rounds) == pytest.approx(right, rel=0.25)


def test_where_sizes_do_not_tell_nothing_is_extrapolated_in_its_favour() -> None:
    speed = DeviceSpeed()
    for _ in range(5):
        speed.note(MIB, 1.0)
    assert speed.seconds(4096) == pytest.approx(1.0)
    assert speed.seconds(MIB) == pytest.approx(1.0)
    assert speed.seconds(8 * MIB) == pytest.approx(8.0)


def test_two_slow_calls_are_believed_and_one_is_not() -> None:
    speed = measured(0.001, 1e-9, 20)
    before = speed.seconds(MIB)
    speed.note(MIB, 1.0)
    assert speed.seconds(MIB) == before
    speed.note(MIB, before)
    speed.note(MIB, 1.0)
    assert speed.seconds(MIB) < 2 * before
    speed.note(MIB, 1.0)
    assert speed.seconds(MIB) == pytest.approx(1.0)


def test_a_device_that_is_fast_again_is_believed_at_once() -> None:
    speed = measured(1.0, 1e-6, 20)
    speed.note(MIB, 0.002)
    assert speed.seconds(MIB) == pytest.approx(0.002)


def test_estimates_follow_a_slow_change() -> None:
    speed = measured(0.001, 1e-9, 20)
    for step in range(1, 40):
        meet(speed, 0.001, 1e-9 * (1 + step / 10), 3, step)
    assert speed.seconds(8 * MIB) == pytest.approx(0.001 + 5e-9 * 8 * MIB, rel=0.2)


def test_more_is_never_expected_sooner() -> None:
    random = Random(3)
    speed = DeviceSpeed()
    for _ in range(500):
        speed.note(random.choice((0, 4096, 65536, MIB, 8 * MIB)), 10 ** random.uniform(-6, 1))
        seconds = [speed.seconds(size) for size in (0, 1, 4096, MIB, 100 * MIB)]
        assert seconds == sorted(seconds)
        assert seconds[0] >= 0

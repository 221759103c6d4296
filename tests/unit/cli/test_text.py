"""Behaviour of `kvtier.cli.text`."""

from __future__ import annotations

import pytest

from kvtier.cli.text import human_bytes, human_seconds, number, percent, plural


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (3 * 2**29, "1.50 GiB"),
        (15 * 2**20, "15.0 MiB"),
        (512 * 2**30, "512 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_bytes_have_three_digits_that_matter(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (273600, "3 d 4 h")],
)
def test_times_have_two_units(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_only_one_is_singular() -> None:
    assert [plural(count, "block") for count in (0, 1, 2000)] == [
        "0 blocks",
        "1 block",
        "2,000 blocks",
    ]


def test_a_share_of_nothing_is_a_dash() -> None:
    assert percent(0, 0) == "-"
    assert percent(1, 3) == "33.3 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (12345.6, "12,346"), (0.01234, "0.0123"), ("a", "a")],
)
def test_numbers_are_readable(value: object, text: str) -> None:
    assert number(value) == text

"""`agent.operating.seen_requests`: the last ones are known, within a bound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvtier.agent.operating.seen_requests import SeenLookup, SeenRequests
from kvtier.core.block import Lane, Tier
from kvtier.testing import ManualClock

ONE: Any = SimpleNamespace(namespace_id=1)
TWO: Any = SimpleNamespace(namespace_id=2)


def lookup(blocks: int, group: int = 0, found: int = 0) -> SeenLookup:
    return SeenLookup(Lane(group), 32, bytes(32 * blocks), b"", 0, found, {Tier.HOST: found})


def test_the_last_lookup_of_a_group_counts_and_others_stay() -> None:
    clock = ManualClock(1000.0)
    seen = SeenRequests(4, clock)
    seen.note(ONE, "a", lookup(4))
    seen.note(ONE, "a", lookup(2, group=1))
    clock.advance(5.0)
    seen.note(ONE, "a", lookup(6, found=3))
    found = seen.find(ONE, "a")
    assert found is not None
    assert (found.request_id, found.time) == ("a", 1005.0)
    assert {group: each.block_count for group, each in found.lookups.items()} == {0: 6, 1: 2}
    assert seen.find(TWO, "a") is None
    assert seen.find(ONE, "b") is None


def test_the_latest_are_kept_and_come_first() -> None:
    seen = SeenRequests(3, ManualClock())
    for name in "abcd":
        seen.note(ONE, name, lookup(1))
    seen.note(ONE, "b", lookup(1))
    assert [each.request_id for each in seen] == ["b", "d", "c"]
    seen.note(TWO, "b", lookup(1))
    assert [(each.namespace, each.request_id) for each in seen] == [
        *((TWO, "b"), (ONE, "b"), (ONE, "d")),
    ]
    seen.forget(ONE)
    assert [each.request_id for each in seen] == ["b"]
    seen.forget(TWO)
    assert (len(seen), seen.size_bytes) == (0, 0)


def test_long_requests_make_way_for_others_and_memory_is_bounded() -> None:
    seen = SeenRequests(10, ManualClock())
    most = 10 * (16384 + 600)
    for number in range(1000):
        seen.note(ONE, f"{number % 13}", lookup(1 + number * 37 % 2000, group=number % 3))
        assert seen.size_bytes == sum(each.size_bytes for each in seen) <= most
        assert len(seen) <= 10
    seen.note(ONE, "longer than all", lookup(8192))
    assert seen.find(ONE, "longer than all") is None


def test_names_are_cut_and_nothing_is_kept_if_so_wished() -> None:
    seen = SeenRequests(2, ManualClock())
    seen.note(ONE, "x" * 256 + "a", lookup(1))
    found = seen.find(ONE, "x" * 256 + "b")
    assert found is not None
    assert found.request_id == "x" * 256
    off = SeenRequests(0, ManualClock())
    off.note(ONE, "a", lookup(1))
    assert (len(off), off.size_bytes) == (0, 0)

"""`agent.tiers.existence`: answers are believed for their time, and bounded."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kvtier.agent.tiers.existence import Existence
from kvtier.core.block import Lane
from kvtier.testing import ManualClock

_HASHES = [bytes([number]) * 16 for number in range(6)]
_PLACES = [(1, Lane()), (1, Lane(0, 1)), (2, Lane())]
_HIT_SECONDS, _MISS_SECONDS = 30.0, 2.0
#: As many answers as are kept.
_MOST = 1 << 16
_BATCH = 512


@dataclass(frozen=True)
class Noted:
    place: int
    hashes: tuple[bytes, ...]
    is_there: bool


@dataclass(frozen=True)
class Passed:
    seconds: float


@dataclass(frozen=True)
class Forgotten:
    namespace_id: int


@dataclass(frozen=True)
class Cleared:
    pass


_NOTED = st.builds(
    Noted,
    st.integers(0, len(_PLACES) - 1),
    st.lists(st.sampled_from(_HASHES), unique=True).map(tuple),
    st.booleans(),
)
_STEPS = st.lists(
    st.one_of(
        _NOTED,
        _NOTED,
        st.builds(Passed, st.sampled_from([0.5, 1.0, 2.0, 15.0, 30.0])),
        st.builds(Forgotten, st.integers(1, 2)),
        st.builds(Cleared),
    ),
    max_size=30,
)


@given(_STEPS)
def test_it_says_what_was_last_heard_for_as_long_as_that_is_believed(
    steps: list[Noted | Passed | Forgotten | Cleared],
) -> None:
    clock = ManualClock()
    existence = Existence(clock, hit_seconds=_HIT_SECONDS, miss_seconds=_MISS_SECONDS)
    heard: dict[tuple[int, bytes], tuple[bool, float]] = {}
    for step in steps:
        match step:
            case Noted(place, hashes, is_there):
                existence.note(_PLACES[place], hashes, is_there=is_there)
                heard.update(dict.fromkeys([(place, h) for h in hashes], (is_there, clock())))
            case Passed(seconds):
                clock.advance(seconds)
            case Forgotten(namespace_id):
                existence.forget(namespace_id)
                heard = {k: v for k, v in heard.items() if _PLACES[k[0]][0] != namespace_id}
            case Cleared():
                existence.clear()
                heard.clear()
        for place, where in enumerate(_PLACES):
            expected: list[bool | None] = []
            for block_hash in _HASHES:
                is_there, at = heard.get((place, block_hash), (False, -1e9))
                believed = _HIT_SECONDS if is_there else _MISS_SECONDS
                expected.append(is_there if clock() - at < believed else None)
            assert existence.known(where, _HASHES) == expected


def _hash(number: int) -> bytes:
    return number.to_bytes(16)


def _known_count(existence: Existence, lane: Lane, count: int) -> int:
    known = existence.known((1, lane), [_hash(number) for number in range(count)])
    return len(known) - known.count(None)


def _note(existence: Existence, numbers: range) -> None:
    for first in range(numbers.start, numbers.stop, _BATCH):
        hashes = [_hash(number) for number in range(first, min(first + _BATCH, numbers.stop))]
        existence.note((1, Lane()), hashes, is_there=True)


def test_the_older_ones_go_when_there_are_too_many() -> None:
    existence = Existence(ManualClock(), hit_seconds=30.0, miss_seconds=30.0)
    _note(existence, range(3 * _MOST))
    known = existence.known((1, Lane()), [_hash(number) for number in range(3 * _MOST)])
    count = known.count(True)
    assert _MOST // 2 - _BATCH <= count <= _MOST + _BATCH
    assert known == [None] * (3 * _MOST - count) + [True] * count


def test_there_are_never_more_than_the_bound_however_many_lanes_they_are_of() -> None:
    existence = Existence(ManualClock(), hit_seconds=30.0, miss_seconds=30.0)
    lanes, each = 1024, 1024
    for shard in range(lanes):
        hashes = [_hash(number) for number in range(each)]
        existence.note((1, Lane(0, shard)), hashes, is_there=False)
    kept = sum(_known_count(existence, Lane(0, shard), each) for shard in range(lanes))
    assert 0 < kept <= _MOST + each


def test_what_is_heard_again_counts_as_new() -> None:
    existence = Existence(ManualClock(), hit_seconds=30.0, miss_seconds=30.0)
    _note(existence, range(_MOST))
    existence.note((1, Lane()), [_hash(0)], is_there=False)
    _note(existence, range(_MOST, _MOST + _MOST // 2 - _BATCH))
    assert existence.known((1, Lane()), [_hash(0), _hash(1)]) == [False, None]

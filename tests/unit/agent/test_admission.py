"""Who is let in while much is under way, and who makes way first."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise

import pytest

from kvtier.agent.serving.admission import Admission, AdmissionLimits, Work
from kvtier.errors import OverloadedError
from kvtier.testing import ManualClock

_DATA = [Work.LOAD, Work.STORE, Work.DEMOTION, Work.PREFETCH]


def _tenant(number: int) -> bytes:
    return f"session {number}".encode()


def _fill(admission: Admission, work: Work, limit: int = 1000) -> int:
    """How many calls of that work come in, each of another session; all of them are gone after."""
    with ExitStack() as stack:
        for number in range(limit):
            try:
                stack.enter_context(admission.call(work, _tenant(number)))
            except OverloadedError:
                return number
    return limit


def _is_refused(entering: AbstractContextManager[None]) -> bool:
    try:
        with entering:
            return False
    except OverloadedError:
        return True


def test_so_many_come_in_and_no_more_and_those_that_left_make_room() -> None:
    admission = Admission(AdmissionLimits(calls=3))
    for _ in range(3):
        assert _fill(admission, Work.ASK) == 3
    assert admission.refused == {Work.ASK: 3}


def test_what_fails_leaves() -> None:
    admission = Admission(AdmissionLimits(calls=2, blocks=8, size_bytes=8, streams=2))
    for _ in range(5):
        for entering in (
            admission.call(Work.LOAD, b"one"),
            admission.stream(Work.LOAD, b"one"),
            admission.blocks(Work.LOAD, b"one", 8, 8),
        ):
            with pytest.raises(ZeroDivisionError), entering:
                raise ZeroDivisionError
    assert not admission.refused


def test_what_is_needed_less_makes_way_first() -> None:
    counts = {work: _fill(Admission(AdmissionLimits(calls=100)), work) for work in _DATA}
    assert counts == {Work.LOAD: 100, Work.STORE: 85, Work.DEMOTION: 70, Work.PREFETCH: 50}
    assert all(counts[a] > counts[b] for a, b in pairwise(_DATA))


@pytest.mark.parametrize(
    "limits", [AdmissionLimits(calls=1), AdmissionLimits(streams=1)], ids=["calls", "streams"]
)
def test_the_smallest_room_still_lets_each_kind_in(limits: AdmissionLimits) -> None:
    admission = Admission(limits)
    for work in _DATA:
        with admission.call(work, b"one"), admission.stream(work, b"one"):
            assert _is_refused(admission.call(Work.LOAD, b"two")) == (limits.calls == 1)
            assert _is_refused(admission.stream(Work.LOAD, b"two")) == (limits.streams == 1)


def test_metadata_has_room_of_its_own() -> None:
    admission = Admission(AdmissionLimits(calls=4, session_share=1.0))
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(admission.call(Work.LOAD, b"one"))
        assert _is_refused(admission.call(Work.LOAD, b"two"))
        assert _fill(admission, Work.ASK) == 4
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(admission.call(Work.ASK, b"one"))
        assert _fill(admission, Work.LOAD) == 4


def test_a_session_has_its_share_and_others_have_theirs() -> None:
    admission = Admission(AdmissionLimits(calls=10, streams=4, session_share=0.5))
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.call(Work.LOAD, b"greedy"))
        with pytest.raises(OverloadedError, match=r"max_session_share of limits\.max_calls"):
            stack.enter_context(admission.call(Work.LOAD, b"greedy"))
        stack.enter_context(admission.call(Work.LOAD, b"modest"))
        stack.enter_context(admission.call(Work.ASK, b"greedy"))
        for _ in range(2):
            stack.enter_context(admission.stream(Work.LOAD, b"greedy"))
        assert _is_refused(admission.stream(Work.LOAD, b"greedy"))
        stack.enter_context(admission.stream(Work.LOAD, b"modest"))


@pytest.mark.parametrize(
    ("sizes", "key"), [((60, 1), "limits.max_blocks"), ((1, 600), "limits.max_in_flight")]
)
def test_blocks_and_bytes_are_bounded(sizes: tuple[int, int], key: str) -> None:
    admission = Admission(AdmissionLimits(blocks=100, size_bytes=1000))
    with admission.blocks(Work.LOAD, b"one", *sizes):
        with pytest.raises(OverloadedError, match=key):
            admission.blocks(Work.LOAD, b"two", *sizes).__enter__()
        assert not _is_refused(admission.blocks(Work.LOAD, b"two", 1, 1))
    assert not _is_refused(admission.blocks(Work.LOAD, b"two", *sizes))


def test_what_is_larger_than_all_room_comes_in_alone() -> None:
    admission = Admission(AdmissionLimits(blocks=10))
    with admission.blocks(Work.LOAD, b"one", 50, 1):
        assert _is_refused(admission.blocks(Work.LOAD, b"two", 1, 1))


def test_work_in_the_background_waits_and_is_told_when_it_may_go_on() -> None:
    admission = Admission(AdmissionLimits(calls=10))
    told: list[bool] = []
    admission.on_relief.append(lambda: told.append(admission.allows(Work.DEMOTION)))
    with ExitStack() as stack:
        stack.enter_context(admission.call(Work.LOAD, _tenant(0)))
        assert admission.allows(Work.DEMOTION)
        for number in range(1, 7):
            stack.enter_context(admission.call(Work.LOAD, _tenant(number)))
        assert not any(admission.allows(Work.DEMOTION) for _ in range(3))
        assert not any(admission.allows(Work.PREFETCH) for _ in range(3))
        with admission.call(Work.LOAD, _tenant(8)):
            assert told == []
        assert told == []
    assert told == [True]
    assert admission.refused == {Work.DEMOTION: 1, Work.PREFETCH: 3}
    assert admission.refused_calls == 3


def test_a_refusal_says_to_come_again_when_a_call_will_have_ended() -> None:
    clock = ManualClock()
    admission = Admission(AdmissionLimits(calls=1), clock)
    waits = []
    for seconds in (0.0, *[0.4] * 100, *[60.0] * 100):
        with admission.call(Work.LOAD, b"one"):
            with pytest.raises(OverloadedError) as caught, admission.call(Work.LOAD, b"two"):
                pytest.fail("let in")
            clock.advance(seconds)
        waits.append(caught.value.retry_after_seconds)
    assert waits[0] == 0.05
    assert waits[100] == pytest.approx(0.4, rel=0.1)
    assert waits[-1] == 5.0

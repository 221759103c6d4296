"""`agent.operating.recording`: who is slow loses requests, and slows nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kvtier.agent.operating.recording import Asked, Recorder, Recording
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import NotFoundError, OverloadedError
from kvtier.testing import ManualClock
from kvtier.tiers.host import HostTier
from tests.unit.agent.disk_agent import in_time, on_loop, sequence

KEYS = sequence("prompt", 8)


@pytest.fixture(name="namespaces")
def _namespaces() -> Iterator[Namespaces]:
    host = HostTier(1 << 20)
    yield Namespaces([host], limit=8)
    host.close()


def register(namespaces: Namespaces, name: str) -> Namespace:
    namespace, _ = namespaces.register(NamespaceSpec(name=name, block_bytes=(4096,)))
    return namespace


@on_loop
async def test_what_is_asked_for_arrives_in_order(namespaces: Namespaces) -> None:
    clock = ManualClock()
    recorder = Recorder(namespaces, clock)
    ours, other = register(namespaces, "ours"), register(namespaces, "other")
    with recorder.recording("") as everything, recorder.recording("default/ours") as some:
        other.ask(KEYS)
        clock.advance(2.0)
        ours.ask(sequence("prompt", 3, start=2))
        assert await in_time(everything.take()) == Asked(other, KEYS, 1000.0)
        asked = Asked(ours, sequence("prompt", 3, start=2), 1002.0)
        assert await in_time(some.take()) == asked
        assert await in_time(everything.take()) == asked


@on_loop
async def test_nobody_is_told_when_nobody_records(namespaces: Namespaces) -> None:
    recorder = Recorder(namespaces, ManualClock())
    namespace = register(namespaces, "ours")
    assert not namespaces.on_asked
    with recorder.recording("") as first:
        with recorder.recording("") as second:
            assert len(namespaces.on_asked) == 1
            namespace.ask(KEYS)
        namespace.ask(KEYS)
        for _ in range(2):
            await in_time(first.take())
        await in_time(second.take())
    assert not namespaces.on_asked
    namespace.ask(KEYS)


@on_loop
async def test_what_does_not_fit_is_lost_and_counted(namespaces: Namespaces) -> None:
    recorder = Recorder(namespaces, ManualClock())
    namespace = register(namespaces, "ours")
    with recorder.recording("", recording=Recording(most_hashes=20)) as slow:
        for _ in range(5):
            namespace.ask(KEYS)
        assert (await in_time(slow.take())).lost_count == 0
        namespace.ask(sequence("later", 4))
        found = [await in_time(slow.take()) for _ in range(2)]
    assert [len(each.keys.hashes) for each in found] == [8, 4]
    assert [each.lost_count for each in found] == [0, 3]


@on_loop
async def test_a_queue_is_bounded_in_requests_too_and_takes_one_of_any_length() -> None:
    host = HostTier(1 << 20)
    namespace = register(Namespaces([host], limit=8), "ours")
    recording = Recording(most_hashes=4, most_requests=3)
    recording.put(namespace, KEYS, 0.0)
    recording.put(namespace, sequence("b", 1), 1.0)
    assert (await in_time(recording.take())).keys == KEYS
    for number in range(5):
        recording.put(namespace, sequence("c", 1, start=number), 2.0)
    recorded = [await in_time(recording.take()) for _ in range(3)]
    assert [each.lost_count for each in recorded] == [1, 0, 0]
    recording.put(namespace, KEYS, 3.0)
    assert (await in_time(recording.take())).lost_count == 2
    host.close()


@on_loop
async def test_a_name_that_names_nothing_and_too_many_recordings_are_refused(
    namespaces: Namespaces,
) -> None:
    recorder = Recorder(namespaces, ManualClock())
    with pytest.raises(NotFoundError, match="default/nobody"):
        recorder.recording("default/nobody").__enter__()
    with ExitStack() as recordings:
        for _ in range(8):
            recordings.enter_context(recorder.recording(""))
        with pytest.raises(OverloadedError, match="8 recordings"):
            recorder.recording("").__enter__()
    assert not namespaces.on_asked

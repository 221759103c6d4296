"""`agent.operating.recording`: who is slow loses requests, and slows nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

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


async def begun(recording: AsyncGenerator[Asked, None]) -> asyncio.Future[Asked]:
    """The first request of a recording that has begun."""
    first = asyncio.ensure_future(anext(recording))
    await asyncio.sleep(0)
    return first


@on_loop
async def test_what_is_asked_for_arrives_in_order(namespaces: Namespaces) -> None:
    clock = ManualClock()
    recorder = Recorder(namespaces, clock)
    ours, other = register(namespaces, "ours"), register(namespaces, "other")
    everything, some = recorder.record(""), recorder.record("default/ours")
    first, first_of_ours = await begun(everything), await begun(some)
    other.ask(KEYS)
    clock.advance(2.0)
    ours.ask(sequence("prompt", 3, start=2))
    assert await in_time(first) == Asked(other, KEYS, 1000.0)
    assert await in_time(first_of_ours) == Asked(ours, sequence("prompt", 3, start=2), 1002.0)
    assert (await in_time(anext(everything))).namespace is ours
    await everything.aclose()
    await some.aclose()


@on_loop
async def test_nobody_is_told_when_nobody_records(namespaces: Namespaces) -> None:
    recorder = Recorder(namespaces, ManualClock())
    namespace = register(namespaces, "ours")
    assert not namespaces.on_asked
    recordings = [recorder.record("") for _ in range(2)]
    waiting = [await begun(each) for each in recordings]
    assert len(namespaces.on_asked) == 1
    namespace.ask(KEYS)
    for each, first in zip(recordings, waiting, strict=True):
        await in_time(first)
        await each.aclose()
    assert not namespaces.on_asked
    namespace.ask(KEYS)


@on_loop
async def test_a_recording_that_is_given_up_while_it_waits_ends(namespaces: Namespaces) -> None:
    recorder = Recorder(namespaces, ManualClock())
    first = await begun(recorder.record(""))
    assert namespaces.on_asked
    first.cancel()
    await asyncio.wait([first])
    assert not namespaces.on_asked


@on_loop
async def test_what_does_not_fit_is_lost_and_counted(namespaces: Namespaces) -> None:
    recorder = Recorder(namespaces, ManualClock())
    namespace = register(namespaces, "ours")
    slow = recorder.record("", Recording(most_hashes=20))
    first = await begun(slow)
    for _ in range(5):
        namespace.ask(KEYS)
    assert (await in_time(first)).lost_count == 0
    namespace.ask(sequence("later", 4))
    found = [await in_time(anext(slow)) for _ in range(2)]
    assert [len(each.keys.hashes) for each in found] == [8, 4]
    assert [each.lost_count for each in found] == [0, 3]
    await slow.aclose()


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
        await anext(recorder.record("default/nobody"))
    recordings = [recorder.record("") for _ in range(8)]
    waiting = [await begun(each) for each in recordings]
    with pytest.raises(OverloadedError, match="8 recordings"):
        await anext(recorder.record(""))
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    assert not namespaces.on_asked

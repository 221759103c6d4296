"""Whatever changes what is in a tier is seen by those who watch, and nothing else is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.placing.evicting import evict
from kvtier.agent.sessions.sessions import Access
from kvtier.client.residents import Residents
from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.errors import (
    AccessDeniedError,
    AgentUnavailableError,
    EventsLostError,
    InvalidRequestError,
    NotFoundError,
)
from kvtier.rpc.server import Call
from kvtier.testing import ManualClock
from kvtier.v1 import cache_events_pb2 as pb
from tests.unit.agent.disk_agent import (
    MIB,
    PAGE,
    SPEC,
    DiskAgent,
    on_loop,
    sequence,
    until,
)
from tests.unit.agent.event_watcher import Watcher, events_of, held, service_of

KEYS = sequence("a", 8)
TTL = 100.0


async def evict_by_policy(agent: DiskAgent) -> None:
    for number in range(80):
        await agent.store(sequence(f"more {number}", 8))
        if number % 5 == 0:
            await agent.quiet()  # what is being written stays in HOST
    assert agent.host_class().counters.evicted > 0


async def evict_on_request(agent: DiskAgent) -> None:
    await agent.upkeep.evict("default/model", lambda _: KEYS, frozenset(Tier), dry_run=False)
    assert not any(agent.in_host(KEYS))


async def invalidate(agent: DiskAgent) -> None:
    await agent.upkeep.invalidate("default/model")
    assert not held(agent)


async def shrink(agent: DiskAgent) -> None:
    await evict_by_policy(agent)
    agent.upkeep.resize(Tier.HOST, MIB)
    await until(lambda: agent.host.space.allocated_bytes <= MIB)


async def retire(agent: DiskAgent) -> None:
    """Another namespace takes extents."""
    await evict_by_policy(agent)
    other = NamespaceSpec(name="other", block_bytes=(4 * PAGE,))
    await agent.quiet()
    for number in range(20):
        await agent.store(sequence(f"{number}", 4), other)
        await agent.quiet()
    assert agent.host_class(other).extents


async def lose(agent: DiskAgent) -> None:
    """A damaged block of DISK is dropped when it is read."""
    agent.leave_host(KEYS)
    agent.spoil(KEYS, 3)
    await agent.load_and_release(KEYS)
    assert not all(agent.on_disk(KEYS))


async def promote(agent: DiskAgent) -> None:
    agent.leave_host(KEYS)
    await agent.load_and_release(KEYS)
    assert all(agent.in_host(KEYS))


async def drain(agent: DiskAgent) -> None:
    await agent.store(sequence("late", 8))
    async for _ in agent.upkeep.drain(0.0):
        pass
    assert all(agent.on_disk(sequence("late", 8)))


@pytest.mark.parametrize(
    "change",
    [evict_by_policy, evict_on_request, invalidate, shrink, retire, lose, promote, drain],
    ids=lambda each: each.__name__,
)
@on_loop
async def test_it_is_seen(change: Callable[[DiskAgent], Awaitable[None]], tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=512) as agent:
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
        service = service_of(events_of(agent), agent.namespaces)
        async with Watcher(service) as early:
            assert early.stored == 16
            before = early.residents.revision
            await change(agent)
            await agent.quiet()
            await early.agrees(agent)
            assert early.residents.revision > before
            async with Watcher(service) as late:
                await late.agrees(agent)


@on_loop
async def test_expiry_is_seen_when_it_frees_space(tmp_path: Path) -> None:
    clock = ManualClock()
    rules = [NamespaceRule("default/*", TTL)]
    async with DiskAgent(tmp_path, rules=rules, ages=Ages(clock, clock)) as agent:
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
        async with Watcher(service_of(events_of(agent), agent.namespaces)) as watcher:
            clock.advance(TTL + 2)
            assert not any(agent.in_host(KEYS))
            await agent.expiry.sweep()
            await watcher.agrees(agent)
            assert not set(watcher.residents)


@on_loop
async def test_what_a_start_finds_on_disk_is_seen(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
    async with (
        DiskAgent(tmp_path, is_started=False) as agent,
        Watcher(service_of(events_of(agent), agent.namespaces)) as watcher,
    ):
        assert not len(watcher.residents)
        await agent.disk.recover(agent.namespaces)
        await watcher.agrees(agent)
        assert len(watcher.residents) == 8


@on_loop
async def test_a_snapshot_is_right_while_much_changes(tmp_path: Path) -> None:
    """Blocks come and go between its parts, by policy and on request."""
    random = Random(3)
    async with DiskAgent(tmp_path, host_pages=2048, disk_bytes=16 * MIB) as agent:
        for number in range(40):
            await agent.store(sequence(f"{number}", 32))
        service = service_of(events_of(agent), agent.namespaces)

        async def churn() -> None:
            for number in range(150):
                await agent.store(sequence(f"new {number}", 8))
                agent.leave_host(sequence(f"{random.randrange(40)}", 32))

        churning = asyncio.get_running_loop().create_task(churn())
        for _ in range(8):
            async with Watcher(service) as watcher:
                assert watcher.error is None
        async with Watcher(service) as watcher:
            await churning
            await agent.quiet()
            await watcher.agrees(agent)


@on_loop
async def test_a_watcher_that_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        service = service_of(events_of(agent), agent.namespaces)
        async with Watcher(service) as first:
            known = first.residents
        await evict_by_policy(agent)
        await agent.quiet()
        async with Watcher(service, known=known) as again:
            await again.agrees(agent)
            assert not any(each.snapshot_done for each in again.messages)


@on_loop
async def test_who_was_away_for_too_long_is_told_to_begin_anew(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        events = events_of(agent, kept=256)
        service = service_of(events, agent.namespaces)
        async with Watcher(service) as first:
            await first.agrees(agent)
        async with Watcher(service):  # keeps the log
            await evict_by_policy(agent)
            async with Watcher(service, known=first.residents) as again:
                assert isinstance(again.error, EventsLostError)
                assert "events.kept" in str(again.error)
        assert events.lost_count == 1


@on_loop
async def test_a_slow_watcher_is_cut_off_and_delays_nobody(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        service = service_of(events_of(agent, kept=256), agent.namespaces)
        async with Watcher(service) as slow, Watcher(service) as quick:
            slow.pause()
            last = quick.residents.revision + 300
            for number in itertools.count():
                await agent.store(sequence(f"more {number}", 8))
                await agent.quiet()
                agent.leave_host(sequence(f"more {number}", 8))
                await quick.agrees(agent)
                if quick.residents.revision > last:
                    break
            assert slow.error is None
            slow.go_on()
            await until(lambda: slow.error)
            assert isinstance(slow.error, EventsLostError)
            assert quick.error is None


@on_loop
async def test_nothing_is_noted_of_what_nobody_watches(tmp_path: Path) -> None:
    """A log ends when what its last watcher saw is no longer kept; another one has another
    epoch."""
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        host = agent.host_class()
        events = events_of(agent, kept=64)
        service = service_of(events, agent.namespaces)
        assert host.witness is None
        async with Watcher(service) as first:
            assert host.witness is not None
            assert events.watcher_count == 1
        assert events.watcher_count == 0
        assert events.size_bytes > 0
        await evict_by_policy(agent)
        assert host.witness is None
        assert events.size_bytes == 0
        async with Watcher(service, known=first.residents) as again:
            assert isinstance(again.error, EventsLostError)
            assert "epoch" in str(again.error)
        async with Watcher(service) as anew:
            await anew.agrees(agent)
            assert anew.residents.epoch != first.residents.epoch


@on_loop
async def test_logs_that_nobody_watches_make_way(tmp_path: Path) -> None:
    specs = [NamespaceSpec(name=f"m{number}", block_bytes=(PAGE,)) for number in range(4)]
    async with DiskAgent(tmp_path) as agent:
        for spec in specs:
            await agent.store(KEYS, spec)
        await agent.quiet()
        events = events_of(agent, max_logs=2)
        service = service_of(events, agent.namespaces)
        async with Watcher(service, "default/m0") as kept:
            for number in (1, 2, 3):
                async with Watcher(service, f"default/m{number}") as watcher:
                    assert watcher.error is None
            assert [agent.host_class(each).witness is not None for each in specs] == [
                True,
                False,
                False,
                True,
            ]
            await agent.store(sequence("more", 4), specs[0])
            await until(lambda: kept.stored == 20)


@on_loop
async def test_other_namespaces_are_not_told_of(tmp_path: Path) -> None:
    other = NamespaceSpec(name="other", block_bytes=(PAGE,))
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        async with Watcher(service_of(events_of(agent), agent.namespaces)) as watcher:
            await agent.quiet()
            await watcher.agrees(agent)
            before = watcher.residents.revision
            await agent.store(sequence("b", 8), other)
            await agent.store(sequence("c", 1))
            await agent.quiet()
            await watcher.agrees(agent)
            assert watcher.residents.revision == before + 2
            assert watcher.residents.namespace == SPEC.label


@on_loop
async def test_a_namespace_that_makes_way_ends_its_streams(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        namespace, _ = agent.namespaces.register(SPEC)
        service = service_of(events_of(agent), agent.namespaces)
        async with Watcher(service) as watcher:
            for number in range(64):
                agent.namespaces.register(NamespaceSpec(name=f"{number}", block_bytes=(PAGE,)))
            assert namespace not in list(agent.namespaces)
            await until(lambda: watcher.error)
            assert isinstance(watcher.error, NotFoundError)
        async with Watcher(service) as late:
            assert isinstance(late.error, NotFoundError)


@on_loop
async def test_the_end_of_the_agent_ends_streams(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        events = events_of(agent)
        service = service_of(events, agent.namespaces)
        async with Watcher(service) as watcher:
            events.close()
            await until(lambda: watcher.error)
            assert isinstance(watcher.error, AgentUnavailableError)
        async with Watcher(service) as late:
            assert isinstance(late.error, AgentUnavailableError)


@on_loop
async def test_bookmarks_come_while_nothing_changes(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        events = events_of(agent, bookmark_seconds=0.001)
        async with Watcher(service_of(events, agent.namespaces)) as watcher:
            await until(lambda: len(watcher.messages) > 5)
            assert not watcher.messages[-1].events
            assert watcher.messages[-1].revision == watcher.residents.revision
            assert watcher.messages[-1].event_time.seconds > 0


@on_loop
async def test_from_now_on_begins_with_a_bookmark(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        service = service_of(events_of(agent), agent.namespaces)
        messages = service.WatchEvents(pb.WatchEventsRequest(namespace="default/model"), Call())
        first = pb.WatchEventsResponse.FromString(await anext(messages))
        assert not first.events
        assert first.epoch
        await agent.store(sequence("b", 1))
        second = pb.WatchEventsResponse.FromString(await anext(messages))
        assert second.events[0].blocks_stored.keys.hashes == sequence("b", 1).hashes[0]
        assert second.revision >= first.revision + 1
        await messages.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (pb.WatchEventsRequest(), InvalidRequestError, "namespace is empty"),
        (pb.WatchEventsRequest(namespace="default/none"), NotFoundError, "no namespace"),
        (pb.WatchEventsRequest(namespace="default/two"), InvalidRequestError, "2 layouts"),
        (
            pb.WatchEventsRequest(namespace="default/model", start_revision=3, snapshot=True),
            InvalidRequestError,
            "start_revision and snapshot",
        ),
        (
            pb.WatchEventsRequest(namespace="default/model", start_revision=3, epoch=5),
            EventsLostError,
            "epoch 0000000000000005",
        ),
        (pb.WatchEventsRequest(namespace="other/model"), AccessDeniedError, "streams.tenants"),
        (pb.WatchEventsRequest(namespace="other"), AccessDeniedError, "streams.tenants"),
    ],
    ids=["empty", "unknown", "ambiguous", "both", "epoch", "tenant", "no-tenant"],
)
@on_loop
async def test_what_is_refused(
    tmp_path: Path, request_: pb.WatchEventsRequest, error: type[Exception], message: str
) -> None:
    async with DiskAgent(tmp_path) as agent:
        agent.namespaces.register(SPEC)
        agent.namespaces.register(NamespaceSpec(tenant="other", name="model", block_bytes=(PAGE,)))
        for size in (PAGE, 2 * PAGE):
            agent.namespaces.register(NamespaceSpec(name="two", block_bytes=(size,)))
        access = Access(frozenset({"default"}))
        service = service_of(events_of(agent), agent.namespaces, access)
        with pytest.raises(error, match=message):
            await anext(service.WatchEvents(request_, Call()))


@on_loop
async def test_who_may_use_nothing_without_attaching_may_watch_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        agent.namespaces.register(SPEC)
        async with Watcher(service_of(events_of(agent), agent.namespaces, None)) as watcher:
            assert isinstance(watcher.error, AccessDeniedError)


@on_loop
async def test_a_lost_removal_does_not_go_unnoticed(tmp_path: Path) -> None:
    """What the tests above rest on: a replay that misses a change is found wrong."""
    async with DiskAgent(tmp_path) as agent:
        await agent.store(KEYS)
        await agent.quiet()
        async with Watcher(service_of(events_of(agent), agent.namespaces)) as watcher:
            host = agent.host_class()
            witness, host.witness = host.witness, None
            await evict(
                agent.session().namespace, KEYS, frozenset({Tier.HOST}), cause=Cause.REMOVED
            )
            host.witness = witness
            await agent.store(KEYS)
            await until(lambda: watcher.error)
            assert isinstance(watcher.error, EventsLostError)


def test_a_replay_refuses_messages_that_do_not_follow() -> None:
    residents = Residents("default/model")
    residents.take(pb.WatchEventsResponse(epoch=1, revision=5, snapshot_done=True))
    with pytest.raises(EventsLostError, match="from revision 5 to 6"):
        residents.take(pb.WatchEventsResponse(epoch=1, revision=6))
    with pytest.raises(EventsLostError, match="epoch"):
        residents.take(pb.WatchEventsResponse(epoch=2, revision=5))

"""`agent.tiers.cluster_reader`: one question, one fetch, and nothing unwanted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kvtier.agent.sessions.namespaces import FIRST_GENERATION, next_generation
from kvtier.core.block import BlockKeys, Lane, Match, Tier
from kvtier.core.namespace import identity_digest
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.sealing import Fault, key_name
from kvtier.tiers.cluster.url import Transport
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import ABSENT, OK, SPEC, in_time, on_loop, sequence, until

_KEYS = sequence("prompt", 12)
_FOREVER: dict[str, Any] = {"hit_seconds": 1000.0, "miss_seconds": 1000.0}


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


@pytest.fixture(name="server")
def _server(running: RedisServer) -> RedisServer:
    running.call("FLUSHALL")
    return running


def _name(keys: BlockKeys, index: int) -> bytes:
    return key_name(PREFIX, identity_digest(SPEC, FIRST_GENERATION), Lane(), keys.hashes[index])


# Finding.


def test_an_answer_is_believed_and_not_asked_for_again(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, **_FOREVER) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.cluster.existence.clear()
            gate = agent.gate.calls
            before = gate["exist"]
            for _ in range(5):
                assert await agent.lookup(_KEYS) == 12
                assert await agent.lookup(sequence("other", 12)) == 0
            assert gate["exist"] == before + 2

    test()


def test_nothing_is_asked_for_blocks_that_are_here_or_tiers_that_are_not_wanted(
    server: RedisServer,
) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, miss_seconds=0.0) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.cluster.existence.clear()
            before = agent.gate.calls["exist"]
            assert await agent.lookup(_KEYS, frozenset({Tier.HOST})) == 0
            assert await agent.lookup(_KEYS, frozenset({Tier.HOST, Tier.DISK})) == 0
            assert agent.gate.calls["exist"] == before
            assert await agent.lookup(_KEYS, frozenset({Tier.CLUSTER})) == 12
            assert await agent.load(_KEYS) == [OK] * 12
            before = agent.gate.calls["exist"]
            assert await agent.lookup(_KEYS) == 12
            assert agent.gate.calls["exist"] == before

    test()


def test_a_prefix_is_asked_for_up_to_its_known_gap(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, **_FOREVER) as agent:
            await agent.store_in_cluster(sequence("prompt", 3))
            agent.cluster.existence.clear()
            assert await agent.lookup(_KEYS, match=Match.PREFIX) == 3
            before = agent.gate.calls["exist"]
            assert await agent.lookup(_KEYS, match=Match.PREFIX) == 3
            longer = sequence("prompt", 24)
            assert await agent.lookup(longer, match=Match.PREFIX) == 3
            assert agent.gate.calls["exist"] == before

    test()


def test_a_lookup_waits_no_longer_than_it_may_and_a_late_answer_counts(
    server: RedisServer,
) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, lookup_seconds=0.05, **_FOREVER) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.cluster.existence.clear()
            agent.gate.shut("existed")
            assert await in_time(agent.lookup(_KEYS)) == 0
            agent.gate.open()
            await until(lambda: agent.cluster.asking.queue_depth == 0)
            assert await agent.lookup(_KEYS) == 12

    test()


def test_nothing_is_asked_before_the_nodes_agree_on_the_generation(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as writer:
            await writer.store_in_cluster(_KEYS)
        async with ClusterAgent(
            server.url, name="two", lookup_seconds=0.05, is_started=False
        ) as agent:
            assert await agent.lookup(_KEYS) == 0
            assert await agent.load(_KEYS) == [ABSENT] * 12
            assert agent.gate.calls["exist"] == 0
            agent.cluster.start()
            await agent.agreed()
            await in_time(agent.found(_KEYS))
            assert await agent.load(_KEYS) == [OK] * 12

    test()


def test_an_answer_about_an_earlier_tenure_does_not_count(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, **_FOREVER) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.cluster.existence.clear()
            agent.gate.shut("existed")
            asking = asyncio.ensure_future(agent.lookup(_KEYS))
            await until(lambda: agent.gate.waiting("existed"))
            await agent.evict(_KEYS)
            agent.gate.open()
            assert await asking == 0
            assert await agent.lookup(_KEYS) == 0

    test()


# Bringing.


def test_a_block_is_fetched_once_however_many_ask(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.gate.shut("fetch")
            loads = [asyncio.ensure_future(agent.load(_KEYS)) for _ in range(5)]
            await until(lambda: agent.gate.waiting("fetch"))
            agent.gate.open()
            for load in loads:
                assert await in_time(load) == [OK] * 12
            # The second load begins with what the first one has not begun with in its first turn.
            assert agent.gate.calls["fetch"] <= 2
            assert agent.cluster.reader.counters(agent.namespace(), 0).promoted == 12
            agent.audit()

    test()


@pytest.mark.parametrize("point", ["fetch", "fetched"])
def test_what_is_evicted_on_its_way_does_not_arrive(server: RedisServer, point: str) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.gate.shut(point)
            loading = asyncio.ensure_future(agent.load(_KEYS))
            await until(lambda: agent.gate.waiting(point))
            await agent.evict(_KEYS)
            agent.gate.open()
            assert await in_time(loading) == [ABSENT] * 12
            assert agent.in_host(_KEYS) == 0
            assert await agent.lookup(_KEYS) == 0
            agent.audit()

    test()


def test_what_is_found_while_it_is_being_evicted_does_not_arrive(server: RedisServer) -> None:
    """It was found and fetched when the server had not deleted it yet."""

    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, **_FOREVER) as agent:
            await agent.store_in_cluster(_KEYS)
            agent.gate.shut("delete", "fetched")
            evicting = asyncio.ensure_future(agent.evict(_KEYS))
            await until(lambda: agent.gate.waiting("delete"))
            loading = asyncio.ensure_future(agent.load(_KEYS))
            await until(lambda: agent.gate.waiting("fetched"))
            agent.gate.open("delete")
            await in_time(evicting)
            agent.gate.open()
            assert await in_time(loading) == [ABSENT] * 12
            assert agent.in_host(_KEYS) == 0
            assert await agent.lookup(_KEYS) == 0
            agent.audit()

    test()


def test_what_another_node_invalidates_on_its_way_does_not_arrive(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent, ClusterAgent(server.url, name="two") as two:
            await agent.store_in_cluster(_KEYS)
            two.session()
            await two.agreed()
            agent.gate.shut("fetched")
            loading = asyncio.ensure_future(agent.load(_KEYS))
            await until(lambda: agent.gate.waiting("fetched"))
            await two.upkeep.invalidate(SPEC.label)
            generation_id = two.namespace().generation_id
            await until(lambda: agent.namespace().generation_id == generation_id)
            agent.gate.open()
            assert await in_time(loading) == [ABSENT] * 12
            assert agent.in_host(_KEYS) == 0
            agent.audit()

    test()


def test_a_node_follows_the_greater_generation_and_no_smaller_one(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent, ClusterAgent(server.url, name="two") as two:
            for each in (agent, two):
                each.session()
                await each.agreed()
            await asyncio.gather(
                agent.upkeep.invalidate(SPEC.label), two.upkeep.invalidate(SPEC.label)
            )
            ids = [each.namespace().generation_id for each in (agent, two)]
            await until(
                lambda: all(each.namespace().generation_id == max(ids) for each in (agent, two))
            )
            assert max(ids) < next_generation(max(ids))
            await agent.store_in_cluster(_KEYS)
            await two.agreed()
            assert await two.load(_KEYS) == [OK] * 12

    test()


def test_a_damaged_value_is_a_miss_and_makes_way(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, **_FOREVER) as agent:
            await agent.store_in_cluster(_KEYS)
            server.call("SETRANGE", _name(_KEYS, 4), 1000, b"damaged")
            statuses = await agent.load(_KEYS)
            assert statuses == [OK] * 4 + [ABSENT] + [OK] * 7
            assert agent.cluster.reader.faults == {Fault.DAMAGED: 1}
            await until(lambda: not server.call("EXISTS", _name(_KEYS, 4)))
            assert await agent.lookup(_KEYS) == 11
            agent.audit()
            # A good one is written where it was.
            await agent.store(_KEYS)
            await agent.cluster.demotion.flush()
            agent.leave_host(_KEYS)
            assert await agent.load(_KEYS) == [OK] * 12

    test()

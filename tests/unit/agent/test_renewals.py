"""`agent.operating.renewals`, of evictions and of lookups with CLUSTER: what was removed
is found nowhere, and who asks has an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier, Wait
from kvtier.errors import AgentUnavailableError
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.tcp_proxy import TcpProxy
from kvtier.tiers.cluster.failure import ClusterDownError, Failure
from kvtier.tiers.cluster.url import Transport
from kvtier.tiers.health import Health
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import ABSENT, OK, PENDING, SPEC, in_time, on_loop, sequence, until

_KEYS = sequence("prompt", 12)
_LIMIT = 64


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


@pytest.fixture(name="server")
def _server(running: RedisServer) -> RedisServer:
    make_room(running)
    running.call("FLUSHALL")
    return running


def make_room(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "maxmemory", "256mb")


def fill(server: RedisServer) -> None:
    """From now on it takes nothing."""
    server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.call("CONFIG", "SET", "maxmemory", "1")


def blocks_of(server: RedisServer) -> int:
    return len(server.call("KEYS", f"{PREFIX}:1:{{*"))


async def nothing_is_found(*agents: ClusterAgent, keys: BlockKeys = _KEYS) -> None:
    for agent in agents:
        agent.cluster.existence.clear()
        assert agent.in_host(keys) == 0
        assert await in_time(agent.lookup(keys)) == 0
        assert set(await in_time(agent.load(keys))) == {ABSENT}


async def followed(one: ClusterAgent, two: ClusterAgent) -> None:
    """Returns when one node's invalidation has been carried out by the other."""
    renewed = two.namespace()
    await until(lambda: renewed.generation_id == one.namespace().generation_id)
    await until(lambda: not renewed.is_renewing)


# Evicting.


@on_loop
async def test_what_a_write_that_failed_has_left_is_evicted_too(server: RedisServer) -> None:
    async with ClusterAgent(server.url) as agent:
        agent.session()
        await agent.agreed()
        agent.gate.shut("store", "stored")
        await agent.store(_KEYS)
        await until(lambda: agent.gate.waiting("store"))
        evicting = asyncio.ensure_future(agent.evict())
        await until(lambda: agent.in_host(_KEYS) == 0)
        agent.gate.open("store")
        await until(lambda: agent.gate.waiting("stored"))
        fill(server)
        agent.gate.open()
        await in_time(evicting)
        assert agent.gate.calls["store"] > agent.gate.calls["stored"] == 1
        assert blocks_of(server) == 0
        await nothing_is_found(agent)
        agent.audit()


# Namespaces that make way for others.


async def crowd(agent: ClusterAgent) -> None:
    """As many namespaces as there may be; the first one has blocks in the cluster."""
    await agent.store_in_cluster(_KEYS)
    for number in range(1, _LIMIT):
        agent.session(replace(SPEC, name=f"model-{number}"))


def make_way(agent: ClusterAgent) -> None:
    """The last namespace is not used any more, and is dropped for another one."""
    last = agent.session(replace(SPEC, name=f"model-{_LIMIT - 1}"))
    agent.sessions.disconnect(last.attachment)
    agent.sessions.process_gone(last.attachment)
    agent.session(replace(SPEC, name="new"))
    assert last.namespace not in list(agent.namespaces)


@on_loop
async def test_a_namespace_that_was_dropped_disturbs_no_eviction(server: RedisServer) -> None:
    async with ClusterAgent(server.url) as agent:
        await crowd(agent)
        agent.gate.shut("delete")
        evict = agent.upkeep.evict("", lambda _: _KEYS, frozenset(Tier), dry_run=False)
        evicting = asyncio.ensure_future(evict)
        await until(lambda: agent.gate.waiting("delete"))
        make_way(agent)
        agent.gate.open()
        assert (await in_time(evicting)).gone == 12
        assert blocks_of(server) == 0


@on_loop
async def test_a_namespace_that_was_dropped_disturbs_no_invalidation(server: RedisServer) -> None:
    async with ClusterAgent(server.url) as agent:
        await crowd(agent)
        namespace, before = agent.namespace(), agent.namespace().generation_id
        invalidating = asyncio.ensure_future(agent.upkeep.invalidate(""))
        await until(lambda: namespace.generation_id > before)
        make_way(agent)
        await in_time(invalidating)
        await nothing_is_found(agent)


@on_loop
async def test_a_lookup_in_a_namespace_that_is_dropped_meanwhile_finds_nothing(
    server: RedisServer,
) -> None:
    async with ClusterAgent(server.url) as agent:
        await crowd(agent)
        last = replace(SPEC, name=f"model-{_LIMIT - 1}")
        await agent.agreed(last)
        agent.gate.shut("existed")
        looking = asyncio.ensure_future(agent.lookup(_KEYS, spec=last))
        await until(lambda: agent.gate.waiting("existed"))
        make_way(agent)
        agent.gate.open()
        assert await in_time(looking) == 0
        assert await in_time(agent.lookup(_KEYS, spec=last)) == 0


@on_loop
async def test_an_invalidation_that_waits_is_not_begun_again_by_the_next_heartbeat(
    server: RedisServer,
) -> None:
    begun: list[bytes] = []
    go_on = asyncio.Event()

    async def wait(namespace: Namespace, generation_id: bytes) -> None:
        begun.append(generation_id)
        await go_on.wait()

    async with ClusterAgent(server.url) as one, ClusterAgent(server.url, name="two") as two:
        for each in (one, two):
            each.session()
            await each.agreed()
        carry_out, two.cluster.on_generation = two.cluster.on_generation, wait
        await one.upkeep.invalidate("")
        await until(lambda: bool(begun))
        for _ in range(3):
            await in_time(two.cluster.publish([two.namespace()]))
        assert begun == [one.namespace().generation_id]
        two.cluster.on_generation = carry_out
        go_on.set()
        await followed(one, two)


# Looking up.


@pytest.mark.parametrize("point", ["fetch", "fetched"])
@on_loop
async def test_a_lookup_with_a_hold_answers_while_a_block_comes_from_the_cluster(
    server: RedisServer, point: str
) -> None:
    async with ClusterAgent(server.url) as agent:
        await agent.store_in_cluster(_KEYS)
        agent.gate.shut(point)
        assert await agent.load(_KEYS, wait=Wait.BEST_EFFORT) == [PENDING] * 12
        await until(lambda: agent.gate.waiting(point))
        session = agent.session()
        [found], hold = await in_time(agent.loading.lookup(session, [_KEYS], hold_seconds=5.0))
        assert found.matched == 12
        agent.grants.release_by_id(session, hold)
        agent.gate.open()
        assert await in_time(agent.load(_KEYS)) == [OK] * 12
        agent.audit()


@on_loop
async def test_a_lookup_of_all_shards_waits_once_for_a_server_without_an_answer() -> None:
    spec, seconds = replace(SPEC, name="tp", shards=8), 0.3
    with RedisServer() as server, TcpProxy(server.port) as proxy:
        async with ClusterAgent(proxy.url, lookup_seconds=seconds, heartbeat_seconds=60.0) as agent:
            session = agent.session(spec)
            await agent.agreed(spec)
            entries = [sequence("loaded", 4, lane=Lane(0, shard)) for shard in range(8)]
            proxy.swallow()
            begin = time.monotonic()
            [found], _ = await agent.loading.lookup(session, [_KEYS], shards=range(8))
            assert time.monotonic() - begin < 3 * seconds
            granted = await agent.loading.load(session, entries, wait=Wait.BEST_EFFORT)
            assert time.monotonic() - begin < 6 * seconds
            assert (found.matched, {*granted.statuses}) == (0, {ABSENT})
            agent.grants.release(granted.lease)
            proxy.pass_on()


@on_loop
async def test_a_server_that_is_back_but_full_is_read(server: RedisServer) -> None:
    async with ClusterAgent(server.url) as agent:
        movers = (agent.cluster.asking, agent.cluster.moving)
        await agent.store_in_cluster(_KEYS)
        fill(server)
        for mover in movers:
            mover.note_error(ClusterDownError(Failure.CONNECTION, "reset"), is_read=True)
        assert not agent.cluster.is_up
        await until(lambda: {each.health for each in movers} == {Health.DEGRADED})
        assert await in_time(agent.load(_KEYS)) == [OK] * 12
        agent.audit()


# Invalidating.


@on_loop
async def test_an_invalidation_whose_caller_is_cancelled_completes(server: RedisServer) -> None:
    async with ClusterAgent(server.url, host_pages=3000) as agent:
        keys = sequence("prompt", 2000)
        await agent.store(keys)
        await agent.cluster.demotion.flush()
        namespace, before = agent.namespace(), agent.namespace().generation_id
        invalidating = asyncio.ensure_future(agent.upkeep.invalidate(SPEC.label))
        await until(lambda: namespace.is_renewing)
        invalidating.cancel()
        await asyncio.gather(invalidating, return_exceptions=True)
        await agent.agreed()
        assert namespace.generation_id > before
        await agent.cluster.demotion.flush()
        await nothing_is_found(agent, keys=keys)


@on_loop
async def test_an_invalidation_that_others_cannot_hear_of_is_said(server: RedisServer) -> None:
    """They hear of it when the server has room again."""
    async with ClusterAgent(server.url) as one, ClusterAgent(server.url, name="two") as two:
        await one.store_in_cluster(_KEYS)
        assert await two.load(_KEYS) == [OK] * 12
        fill(server)
        with pytest.raises(AgentUnavailableError, match="CLUSTER"):
            await in_time(one.upkeep.invalidate(SPEC.label))
        make_room(server)
        await followed(one, two)
        await nothing_is_found(one, two)


@pytest.mark.parametrize("is_known", [False, True])
@on_loop
async def test_an_invalidation_while_the_cluster_is_away_is_said(is_known: bool) -> None:
    with RedisServer() as server, TcpProxy(server.port) as proxy:
        async with ClusterAgent(proxy.url, timeout_seconds=0.3) as agent:
            await agent.store_in_cluster(_KEYS)
            before = agent.namespace().generation_id
            proxy.swallow()
            if is_known:
                await until(lambda: not agent.cluster.is_up)
            with pytest.raises(AgentUnavailableError, match="CLUSTER"):
                await in_time(agent.upkeep.invalidate(SPEC.label))
            proxy.pass_on()
            assert agent.namespace().generation_id > before
            await agent.agreed()
            await nothing_is_found(agent)


@on_loop
async def test_an_invalidation_by_a_node_that_is_behind_is_not_lost() -> None:
    with RedisServer() as server, TcpProxy(server.port) as proxy:
        async with ClusterAgent(server.url) as agent:
            agent.session()
            for _ in range(2):
                await agent.upkeep.invalidate(SPEC.label)
            await agent.agreed()
            await agent.store_in_cluster(_KEYS)
            assert await agent.load(_KEYS) == [OK] * 12
        proxy.swallow()
        async with ClusterAgent(proxy.url, timeout_seconds=0.3, is_started=False) as agent:
            agent.session()
            with pytest.raises(AgentUnavailableError, match="CLUSTER"):
                await in_time(agent.upkeep.invalidate(SPEC.label))
            proxy.pass_on()
            agent.cluster.start()
            await agent.agreed()
            await nothing_is_found(agent)


@on_loop
async def test_what_is_reserved_when_another_node_invalidates_is_lost(server: RedisServer) -> None:
    async with ClusterAgent(server.url) as one, ClusterAgent(server.url, name="two") as two:
        one.session()
        granted = await two.storing.reserve(two.session(), [_KEYS])
        await two.agreed()
        await one.upkeep.invalidate(SPEC.label)
        await followed(one, two)
        committed = await two.storing.commit(two.session(), granted.lease.lease_id)
        assert committed == [BlockStatus.EXPIRED]
        await two.agreed()
        await two.cluster.demotion.flush()
        assert blocks_of(server) == 0
        await nothing_is_found(one, two)

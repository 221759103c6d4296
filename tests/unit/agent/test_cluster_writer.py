"""`agent.tiers.cluster_writer`: each block is written once, and not what is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvtier.agent.sessions.namespaces import FIRST_GENERATION
from kvtier.core.block import Tier
from kvtier.errors import AgentUnavailableError
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.tcp_proxy import TcpProxy
from kvtier.tiers.cluster.url import Transport
from kvtier.tiers.health import Health
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import ABSENT, OK, PAGE, SPEC, in_time, on_loop, sequence, until

_KEYS = sequence("prompt", 12)


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


@pytest.fixture(name="server")
def _server(running: RedisServer) -> RedisServer:
    running.call("CONFIG", "SET", "maxmemory", "256mb")
    running.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    running.call("FLUSHALL")
    return running


def _blocks(server: RedisServer) -> int:
    return len(server.call("KEYS", f"{PREFIX}:1:{{*"))


def test_what_is_stored_is_written(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store(_KEYS)
            await until(lambda: agent.cluster.writer.stored_count == 12)
            await agent.quiet()
            assert _blocks(server) == 12
            agent.audit()

    test()


def test_two_nodes_write_a_block_once(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as one, ClusterAgent(server.url, name="two") as two:
            await one.store(_KEYS)
            await one.cluster.demotion.flush()
            await two.store(_KEYS)
            await two.cluster.demotion.flush()
            assert one.gate.calls["store"] == 12
            assert two.gate.calls["store"] == 0
            assert (one.cluster.writer.stored_count, two.cluster.writer.stored_count) == (12, 0)

    test()


def test_what_was_just_written_is_known_to_be_there(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store_in_cluster(_KEYS)
            before = agent.gate.calls["exist"]
            assert await agent.lookup(_KEYS) == 12
            assert agent.gate.calls["exist"] == before

    test()


@pytest.mark.parametrize("point", ["exist", "store", "stored"])
def test_what_is_evicted_while_it_is_written_is_removed_again(
    server: RedisServer, point: str
) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            agent.session()
            await agent.agreed()
            agent.gate.shut(point)
            await agent.store(_KEYS)
            await until(lambda: agent.gate.waiting(point))
            evicting = asyncio.ensure_future(agent.evict(_KEYS))
            await until(lambda: not agent.in_host(_KEYS))
            agent.gate.open()
            await in_time(evicting)
            assert _blocks(server) == 0
            assert await agent.lookup(_KEYS) == 0
            assert await agent.load(_KEYS) == [ABSENT] * 12
            agent.audit()

    test()


def test_what_is_invalidated_while_it_is_written_is_not_found(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent, ClusterAgent(server.url, name="two") as two:
            agent.session()
            two.session()
            await agent.agreed()
            agent.gate.shut("stored")
            await agent.store(_KEYS)
            await until(lambda: agent.gate.waiting("stored"))
            await agent.upkeep.invalidate(SPEC.label)
            agent.gate.open()
            await agent.quiet()
            generation_id = agent.namespace().generation_id
            await until(lambda: two.namespace().generation_id == generation_id)
            await two.agreed()
            for each in (agent, two):
                assert await each.lookup(_KEYS) == 0
            assert _blocks(server) == 0
            agent.audit()

    test()


def test_nothing_of_an_earlier_generation_is_written_as_one_of_the_next(
    server: RedisServer,
) -> None:
    """Blocks are being written, and wait for that, when they are invalidated."""

    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, max_in_flight_bytes=PAGE) as agent:
            agent.session()
            await agent.agreed()
            agent.gate.shut("store")
            keys = sequence("prompt", 200)
            await agent.store(keys)
            await until(lambda: agent.gate.waiting("store"))
            namespace = agent.namespace()
            invalidating = asyncio.create_task(agent.upkeep.invalidate(SPEC.label))
            await until(lambda: namespace.is_renewing)
            agent.gate.open()
            await invalidating
            await agent.agreed()
            await agent.cluster.writer.settled()
            tenure = agent.cluster.tenures.of(namespace)
            assert tenure.generation_id > FIRST_GENERATION
            found = agent.storage.blocks.exist(
                tenure.identity, keys.lane, keys.hashes, agent.storage.deadline()
            )
            assert not any(found)
            assert agent.in_host(keys) == 0

    test()


@pytest.mark.parametrize("is_all", [True, False])
def test_a_dry_run_counts_what_only_the_cluster_has(server: RedisServer, is_all: bool) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store_in_cluster(_KEYS)
            keys, everywhere = None if is_all else _KEYS, frozenset(Tier)
            for dry_run in (True, False):
                evicted = await agent.upkeep.evict(
                    SPEC.label, lambda _: keys, everywhere, dry_run=dry_run
                )
                assert evicted.gone == 12
                assert _blocks(server) == (12 if dry_run else 0)

    test()


def test_a_dry_run_does_without_a_cluster_that_is_gone() -> None:
    @on_loop
    async def test() -> None:
        with RedisServer() as own, TcpProxy(own.port) as proxy:
            async with ClusterAgent(proxy.url, timeout_seconds=0.5) as agent:
                await agent.store(_KEYS)
                await agent.cluster.demotion.flush()
                proxy.swallow()
                evicting = agent.upkeep.evict("", lambda _: None, frozenset(Tier), dry_run=True)
                assert (await in_time(evicting)).gone == 12
                proxy.pass_on()

    test()


def test_what_is_evicted_from_the_cluster_alone_stays_here(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store(_KEYS)
            await agent.cluster.demotion.flush()
            await agent.evict(_KEYS, frozenset({Tier.CLUSTER}))
            assert _blocks(server) == 0
            assert agent.in_host(_KEYS) == 12
            assert await agent.lookup(_KEYS, frozenset({Tier.CLUSTER})) == 0

    test()


def test_nothing_is_written_before_the_nodes_agree_on_the_generation(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, is_started=False) as agent:
            agent.cluster.demotion.open()
            await agent.store(_KEYS)
            await until(lambda: agent.cluster.writer.batches)
            await agent.cluster.moving.run(lambda: None)
            await until(lambda: not agent.cluster.moving.queue_depth)
            assert agent.gate.calls["store"] == 0
            agent.cluster.start()
            await agent.cluster.demotion.flush()
            assert _blocks(server) == 12

    test()


def test_many_exchanges_in_a_row_are_no_outage() -> None:
    """A call on a slow network takes longer than one exchange may, and is cut in time."""

    @on_loop
    async def test() -> None:
        with RedisServer() as server, TcpProxy(server.port) as proxy:
            async with ClusterAgent(
                proxy.url, timeout_seconds=0.7, heartbeat_seconds=60.0
            ) as agent:
                agent.session()
                await agent.agreed()
                proxy.delay(0.03)
                keys = sequence("prompt", 30)
                await agent.store(keys)
                await until(
                    lambda: (
                        agent.cluster.writer.stored_count == 30
                        or agent.cluster.moving.health is not Health.ACTIVE
                    )
                )
                proxy.pass_on()
                assert agent.cluster.moving.health is Health.ACTIVE
                assert agent.cluster.writer.failed_count == 0
                await agent.quiet()
                assert _blocks(server) == 30
                agent.audit()

    test()


def test_what_has_left_host_before_its_turn_is_not_written(server: RedisServer) -> None:
    """HOST shrinks, and DISK was written to first: rows that are told then may be empty."""

    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, is_started=False) as agent:
            await agent.store(_KEYS)
            host = agent.host_class()
            rows = host.find_many(_KEYS.lane, _KEYS.hashes)
            agent.cluster.start()
            await agent.agreed()
            agent.leave_host(_KEYS)
            await agent.quiet()
            ended = agent.cluster.writer.ended_count
            await in_time(agent.cluster.demotion.write(host, rows))
            await agent.quiet()
            assert agent.cluster.writer.ended_count == ended
            agent.audit()

    test()


@pytest.mark.parametrize("is_heard_of_late", [True, False])
def test_a_batch_that_is_given_up_and_ends_early_all_the_same_leaves_nothing_in_use(
    server: RedisServer, is_heard_of_late: bool
) -> None:
    """After its first block it has no time for further ones, and nobody waits for it any more; or
    it ends while it is given up, before its writer has heard of either."""

    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, timeout_seconds=0.5) as agent:
            agent.session()
            await agent.agreed()
            mover, turned = agent.cluster.moving, agent.cluster.moving.on_turn

            def end_it() -> None:
                turned()
                agent.gate.open()
                while any(mover.forecast.running):
                    pass

            if not is_heard_of_late:
                mover.on_turn = end_it
            agent.gate.shut("stored")
            await agent.store(_KEYS)
            await until(lambda: mover.health is Health.UNAVAILABLE)
            agent.gate.open()
            await until(lambda: _blocks(server) == 12)
            await agent.quiet()
            assert not agent.cluster.writer.has_overdue
            agent.audit()

    test()


def test_a_full_server_is_read_and_written_to_when_it_has_room_again(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            await agent.store_in_cluster(_KEYS)
            server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            server.call("CONFIG", "SET", "maxmemory", "1mb")
            later = sequence("later", 12)
            await agent.store(later)
            await until(lambda: agent.cluster.moving.health is Health.DEGRADED)
            with pytest.raises(AgentUnavailableError, match="out of memory"):
                await agent.upkeep.flush(Tier.CLUSTER)
            assert await agent.load(_KEYS) == [OK] * 12
            server.call("CONFIG", "SET", "maxmemory", "256mb")
            await until(lambda: _blocks(server) == 24)
            await agent.quiet()
            agent.audit()

    test()


def test_a_full_server_still_tells_what_others_have_invalidated(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as one, ClusterAgent(server.url, name="two") as two:
            await one.store_in_cluster(_KEYS)
            two.session()
            await two.agreed()
            await one.upkeep.invalidate(SPEC.label)
            await one.agreed()  # it is written now
            server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            server.call("CONFIG", "SET", "maxmemory", "1mb")
            async with ClusterAgent(server.url, name="three") as three:
                generation_id = one.namespace().generation_id
                for each in (two, three):
                    each.session()
                    await until(
                        lambda each=each: each.namespace().generation_id == generation_id  # type: ignore[misc]
                    )
                    await each.agreed()
                assert three.cluster.asking.health is Health.DEGRADED

    test()


@pytest.mark.parametrize("is_all", [False, True])
def test_what_the_cluster_does_not_remove_leaves_this_node_all_the_same(is_all: bool) -> None:
    @on_loop
    async def test() -> None:
        with RedisServer() as server, TcpProxy(server.port) as proxy:
            async with ClusterAgent(proxy.url, timeout_seconds=0.5) as agent:
                await agent.store(_KEYS)
                await agent.cluster.demotion.flush()
                proxy.swallow()
                with pytest.raises(AgentUnavailableError, match="CLUSTER"):
                    await in_time(agent.evict(None if is_all else _KEYS))
                assert agent.in_host(_KEYS) == 0
                assert not agent.cluster.is_up
                proxy.pass_on()

    test()

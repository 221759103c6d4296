"""`agent.tiers.cluster` when its server goes and comes back."""

from __future__ import annotations

from typing import Any

from kvtier.core.block import Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.tcp_proxy import TcpProxy
from kvtier.tiers.cluster.url import Transport
from kvtier.tiers.health import Health
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import ABSENT, OK, in_time, on_loop, sequence, until

_KEYS = sequence("prompt", 12)
_FOREVER: dict[str, Any] = {"hit_seconds": 1000.0, "miss_seconds": 1000.0}


def test_a_server_that_went_is_not_asked_and_nothing_hangs() -> None:
    @on_loop
    async def test() -> None:
        with RedisServer(Transport.UNIX) as server:
            async with ClusterAgent(server.url, timeout_seconds=0.5, **_FOREVER) as agent:
                await agent.store_in_cluster(_KEYS)
                server.kill()
                assert await in_time(agent.load(_KEYS)) == [ABSENT] * 12
                await until(lambda: not agent.cluster.is_up)
                before = agent.gate.calls["exist"]
                assert await in_time(agent.lookup(sequence("other", 12))) == 0
                assert agent.gate.calls["exist"] == before
                agent.audit()
                server.start()
                await until(lambda: agent.cluster.is_up)
                # It is empty now, and what was heard before does not count.
                assert await in_time(agent.lookup(_KEYS)) == 0
                await agent.store_in_cluster(sequence("third", 4))
                assert await in_time(agent.load(sequence("third", 4))) == [OK] * 4

    test()


def test_fetches_that_fail_are_seen() -> None:
    @on_loop
    async def test() -> None:
        with RedisServer() as server, TcpProxy(server.port) as proxy:
            async with ClusterAgent(
                proxy.url, timeout_seconds=0.5, heartbeat_seconds=60.0, **_FOREVER
            ) as agent:
                await agent.store_in_cluster(_KEYS)
                assert await agent.lookup(_KEYS) == 12
                proxy.cut_after(1000)
                assert await in_time(agent.load(_KEYS)) == [ABSENT] * 12
                assert agent.cluster.moving.health is Health.UNAVAILABLE
                assert not agent.cluster.is_up
                agent.audit()

    test()


def test_a_drain_does_not_need_the_cluster() -> None:
    @on_loop
    async def test() -> None:
        with RedisServer(Transport.UNIX) as server:
            async with ClusterAgent(server.url, timeout_seconds=0.5) as agent:
                await agent.store(_KEYS)
                server.kill()
                reports = [each async for each in agent.upkeep.drain(0.0)]
                assert reports[-1].is_done

    test()


def test_a_flush_writes_what_the_server_has_lost() -> None:
    @on_loop
    async def test() -> None:
        with RedisServer(Transport.UNIX) as server:
            async with ClusterAgent(server.url, **_FOREVER) as agent:
                await agent.store(_KEYS)
                await agent.upkeep.flush(Tier.CLUSTER)
                server.call("FLUSHALL")
                await agent.upkeep.flush(Tier.CLUSTER)
                assert len(server.call("KEYS", f"{PREFIX}:1:{{*")) == 12

    test()

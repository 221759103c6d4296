"""Prefetching from the cluster: brought, dropped and overtaken as from DISK."""

from __future__ import annotations

import asyncio

from kvtier.agent.sessions.sessions import Access
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from tests.unit.agent.cluster_agent import ClusterAgent
from tests.unit.agent.disk_agent import OK, SPEC, in_time, on_loop, sequence, until

FIRST, SECOND, THIRD = (sequence(name, 4) for name in ("first", "second", "third"))


@on_loop
async def _fetched(url: str) -> None:
    async with ClusterAgent(url, connections=1, hit_seconds=1000.0) as agent:
        for keys in (FIRST, SECOND, THIRD):
            await agent.store_in_cluster(keys)
        moving = agent.cluster.moving
        attachment = agent.sessions.attach(bytes([1]) * 16, 0, 0, 1, Access(frozenset({"*"})))
        session, _ = agent.sessions.open(attachment.token, SPEC, "")
        agent.gate.shut("fetch")
        assert await agent.loading.prefetch(session, FIRST) == 4
        await until(lambda: agent.gate.waiting("fetch"))
        for keys in (SECOND, THIRD):
            assert await agent.loading.prefetch(session, keys) == 4
        await until(lambda: moving.queue_depth == 3)
        before = moving.forecast.seconds_until_read(0)
        load = asyncio.create_task(agent.load(THIRD))  # which waits behind FIRST alone
        await until(lambda: moving.forecast.seconds_until_read(0) > before)
        agent.sessions.disconnect(attachment)
        await until(lambda: moving.queue_depth == 2)
        agent.gate.open()
        assert await in_time(load) == [OK] * 4
        await until(lambda: not agent.loading.prefetching.wish_count)
        await agent.quiet()
        assert [agent.in_host(keys) for keys in (FIRST, SECOND, THIRD)] == [4, 0, 4]
        assert agent.promotion.ahead_bytes == agent.promotion.prefetch_bytes == 0
        assert await agent.load(FIRST) == [OK] * 4
        unused = agent.host_class().unused
        assert (unused.brought_count, unused.wasted_count) == (8, 0)
        agent.audit()


def test_a_prefetch_that_nobody_wants_is_dropped_and_a_load_goes_first() -> None:
    with RedisServer(Transport.UNIX) as server:
        _fetched(server.url)

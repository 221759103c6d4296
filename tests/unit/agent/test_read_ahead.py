"""`agent.serving.read_ahead`: along one chain, as far as it was written together."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.agent.serving.prefetching import PrefetchOptions
from kvtier.agent.serving.read_ahead import continuation
from kvtier.core.block import BlockKeys
from tests.unit.agent.disk_agent import OK, DiskAgent, names, on_loop, sequence, until

KEYS = sequence("a", 16)
HALF = sequence("a", 8)


async def settled(agent: DiskAgent) -> None:
    prefetching = agent.loading.prefetching
    await until(lambda: not prefetching.wish_count and not agent.promotion.prefetch_bytes)
    await agent.quiet()


def ahead(agent: DiskAgent, keys: BlockKeys, count: int) -> int:
    found = continuation(agent.session().namespace, keys, count)
    return len(found.hashes) if found else 0


async def branch(agent: DiskAgent, at: int) -> None:
    """Another sequence continues the block at this place."""
    [before] = names("a", 1, at)
    await agent.store_on_disk(BlockKeys(KEYS.lane, names("branch", 2), before, at + 1))


@pytest.mark.parametrize(("count", "brought"), [(0, 0), (1, 1), (3, 3), (8, 8), (100, 8)])
@pytest.mark.parametrize("by", ["load", "prefetch", "lookup"])
@on_loop
async def test_so_many_blocks_follow(tmp_path: Path, count: int, brought: int, by: str) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        agent.loading.prefetching.options = PrefetchOptions(read_ahead_blocks=count)
        if by == "load":
            assert await agent.load_and_release(HALF) == [OK] * 8
        elif by == "prefetch":
            assert await agent.loading.prefetch(agent.session(), HALF) == 8
        else:
            await agent.loading.lookup(agent.session(), [HALF], prefetch=True)
        await until(lambda: sum(agent.in_host(KEYS)) >= 8 + brought)
        await settled(agent)
        assert agent.in_host(KEYS) == [True] * (8 + brought) + [False] * (8 - brought)
        unused = agent.host_class().unused
        assert unused.count == (brought if by == "load" else 8 + brought)


@on_loop
async def test_what_is_read_ahead_does_not_read_ahead(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        agent.loading.prefetching.options = PrefetchOptions(read_ahead_blocks=2)
        await agent.load_and_release(sequence("a", 2))
        await until(lambda: sum(agent.in_host(KEYS)) >= 4)
        await settled(agent)
        assert sum(agent.in_host(KEYS)) == 4


@pytest.mark.parametrize("at", [7, 9])
@on_loop
async def test_a_branch_ends_it(tmp_path: Path, at: int) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert ahead(agent, HALF, 100) == 8
        await branch(agent, at)
        assert ahead(agent, HALF, 100) == at - 7


@on_loop
async def test_it_ends_where_something_else_was_written_between(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(sequence("a", 10))
        await agent.store_on_disk(sequence("other", 1))
        await agent.store_on_disk(sequence("a", 6, start=10))
        assert ahead(agent, HALF, 100) == 2
        assert ahead(agent, sequence("a", 10), 100) == 0
        assert ahead(agent, sequence("a", 11), 100) == 5


@on_loop
async def test_what_is_not_on_disk_has_no_continuation(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(HALF)
        assert ahead(agent, HALF, 100) == 0
        assert ahead(agent, sequence("nowhere", 2), 100) == 0


@on_loop
async def test_a_continuation_has_its_place(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        found = continuation(agent.session().namespace, sequence("a", 4, start=4), 2)
        assert found == sequence("a", 2, start=8)

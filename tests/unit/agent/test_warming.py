"""`agent.operating.warming`, and of what policies say that they expect."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.agent.operating.warming import Warming, WarmingOptions
from kvtier.agent.serving.prefetching import PrefetchOptions
from kvtier.core.block import BlockKeys
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.policies.expecting import chance_of_return, expected
from kvtier.core.policies.lru import Lru
from kvtier.errors import InvalidRequestError, NotFoundError
from tests.unit.agent.disk_agent import (
    MIB,
    PAGE,
    SPEC,
    DiskAgent,
    on_hurried_loop,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 8)
EDGES = [0.0, 0.5, 2.0, 10.0]


class Prophet(Lru):
    """Expects the chains that it is told to."""

    rows: tuple[int, ...] = ()

    def expected(self, within_seconds: float, least_chance: float, count: int) -> list[int]:
        return list(self.rows)[:count]


def warming(agent: DiskAgent) -> Warming:
    return Warming(
        agent.namespaces,
        agent.promotion,
        agent.loading.prefetching,
        WarmingOptions(is_predictive=True, within_seconds=30),
        clock=agent.clock,
    )


async def settled(agent: DiskAgent) -> None:
    await until(lambda: not agent.loading.prefetching.wish_count)
    await agent.quiet()


def prophet(agent: DiskAgent) -> Prophet:
    disk = agent.disk_class()
    policy = disk.policy = Prophet(disk, agent.disk.tier._context)
    return policy


def foretell(agent: DiskAgent, *entries: BlockKeys) -> None:
    policy, disk = agent.disk_class().policy, agent.disk_class()
    assert isinstance(policy, Prophet)
    policy.rows = tuple(disk.residency.find(keys.lane, keys.hashes[-1]) for keys in entries)


# By request.


@on_loop
async def test_a_prefix_is_warmed_and_asking_again_says_how_far_it_is(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        each = warming(agent)
        assert await each.warm(SPEC.label, lambda _: sequence("a", 12)) == (8, 0)
        await settled(agent)
        assert await each.warm("default/model", lambda _: sequence("a", 12)) == (8, 8)
        assert agent.host_class().unused.count == 8
        agent.audit()


@on_loop
async def test_a_name_of_several_layouts_is_refused(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        agent.session()
        other = NamespaceSpec(name="model", block_bytes=(2 * PAGE,))
        agent.session(other)
        with pytest.raises(InvalidRequestError, match=r"has 2 layouts; name one of .*@.*, .*@"):
            await warming(agent).warm("default/model", lambda _: KEYS)
        with pytest.raises(NotFoundError):
            await warming(agent).warm("default/nothing", lambda _: KEYS)


# What is expected.


@on_loop
async def test_an_expected_chain_is_brought_from_its_beginning(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        prophet(agent)
        await agent.store_on_disk(KEYS)
        await agent.store_on_disk(sequence("b", 4))
        foretell(agent, KEYS)
        await warming(agent).warm_expected()
        await settled(agent)
        assert all(agent.in_host(KEYS))
        assert not any(agent.in_host(sequence("b", 4)))
        assert agent.host_class().unused.count == 8
        agent.audit()


@on_loop
async def test_what_was_in_vain_is_not_tried_again_while_it_is_expected(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        prophet(agent)
        await agent.store_on_disk(KEYS)
        foretell(agent, KEYS)
        each = warming(agent)
        for seconds, times in ((0, 1), (29, 1), (2, 2)):
            agent.clock.advance(seconds)
            await each.warm_expected()
            await settled(agent)
            agent.leave_host(KEYS)
            assert agent.host_class().unused.wasted_count == 8 * times


@on_loop
async def test_what_is_expected_stays_within_the_budget(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64) as agent:
        prophet(agent)
        agent.loading.prefetching.options = PrefetchOptions(max_share=10 / 64)
        chains = [sequence(f"chain {number}", 4) for number in range(6)]
        for keys in chains:
            await agent.store_on_disk(keys)
        foretell(agent, *chains)
        await warming(agent).warm_expected()
        await settled(agent)
        assert [sum(agent.in_host(keys)) for keys in chains] == [4, 4, 2, 0, 0, 0]
        agent.audit()


@on_hurried_loop
async def test_it_looks_for_what_is_expected_by_itself(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        prophet(agent)
        await agent.store_on_disk(KEYS)
        running = asyncio.create_task(warming(agent).run())
        foretell(agent, KEYS)
        await until(lambda: all(agent.in_host(KEYS)))
        running.cancel()
        await asyncio.wait([running])
        await settled(agent)
        agent.audit()


@on_loop
async def test_a_policy_that_says_nothing_expects_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(KEYS)
        assert expected(agent.disk_class().policy, 30, 0.0, 8) == []
        await warming(agent).warm_expected()
        assert not agent.loading.prefetching.wish_count


# The chance.


@given(st.floats(0, 50), st.floats(0, 50), st.lists(st.floats(0, 2), min_size=4, max_size=4))
def test_a_chance_is_what_is_left_of_the_survivors(
    age: float, within: float, rates: list[float]
) -> None:
    def events(until: float) -> float:
        """To be expected from age 0 on."""
        ends = [*EDGES[1:], math.inf]
        return sum(
            rate * max(0.0, min(until, end) - edge)
            for rate, edge, end in zip(rates, EDGES, ends, strict=True)
        )

    chance = chance_of_return(rates, EDGES, age, within)
    survivors = math.exp(events(age) - events(age + within))
    assert chance == pytest.approx(1 - survivors, abs=1e-9)
    assert 0 <= chance <= 1


def test_a_longer_time_is_a_greater_chance() -> None:
    rates = [Random(3).random() for _ in EDGES]
    chances = [chance_of_return(rates, EDGES, 1.0, within) for within in (0, 0.5, 1, 5, 20, 100)]
    assert chances[0] == 0
    assert all(before < after for before, after in pairwise(chances))


@on_loop
async def test_a_long_chain_is_warmed_from_its_beginning(tmp_path: Path) -> None:
    """It takes more than one turn of the loop to follow."""
    async with DiskAgent(tmp_path, host_pages=2048, disk_bytes=16 * MIB) as agent:
        prophet(agent)
        agent.loading.prefetching.options = PrefetchOptions(max_share=1.0)
        for start in range(0, 700, 100):
            await agent.store_on_disk(sequence("long", 100, start=start))
        foretell(agent, sequence("long", 700))
        await warming(agent).warm_expected()
        await settled(agent)
        assert all(agent.in_host(sequence("long", 700)))

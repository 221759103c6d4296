"""Evicting by age, and down to a size."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.core.ages import Ages
from kvtier.core.block import Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.testing import ManualClock
from tests.unit.agent.disk_agent import PAGE, DiskAgent, on_loop, sequence, until

BOTH = frozenset({Tier.HOST, Tier.DISK})
OTHER = NamespaceSpec(name="other", block_bytes=(PAGE,))


async def three_ages(agent: DiskAgent, clock: ManualClock) -> None:
    """In both tiers: `a` is 20 s old, what continues it 10 s, and `b` is new."""
    for keys in (sequence("a", 4), sequence("a", 4, start=4), sequence("b", 4)):
        await agent.store(keys)
        await until(lambda keys=keys: all(agent.on_disk(keys)))  # type: ignore[misc]
        if keys.hashes != sequence("b", 4).hashes:
            clock.advance(10.0)
    await agent.quiet()


@on_loop
async def test_what_is_old_goes_and_what_is_younger_stays_for_good(tmp_path: Path) -> None:
    clock = ManualClock()
    async with DiskAgent(tmp_path, ages=Ages(clock, clock)) as agent:
        await three_ages(agent, clock)
        for dry_run in (True, False):
            evicted = await agent.upkeep.evict(
                "", lambda _: None, BOTH, dry_run=dry_run, min_age_seconds=20.0
            )
            assert (evicted.gone, evicted.deferred, evicted.pinned) == (8, 0, 0)
            assert all(agent.in_host(sequence("a", 4))) is dry_run
        assert all(agent.in_host(sequence("a", 4, start=4)) + agent.on_disk(sequence("b", 4)))
        assert not any(agent.on_disk(sequence("a", 4)))
        agent.audit()
    async with DiskAgent(tmp_path, ages=Ages(clock, clock)) as agent:
        assert agent.on_disk(sequence("a", 8)) == [False] * 4 + [True] * 4


@on_loop
async def test_of_keys_and_what_continues_them_the_old_ones_go(tmp_path: Path) -> None:
    clock = ManualClock()
    async with DiskAgent(tmp_path, ages=Ages(clock, clock)) as agent:
        await three_ages(agent, clock)
        evicted = await agent.upkeep.evict(
            "",
            lambda _: sequence("a", 2, start=2),
            frozenset({Tier.HOST}),
            dry_run=False,
            min_age_seconds=10.0,
        )
        assert evicted.gone == 6
        assert agent.in_host(sequence("a", 8)) == [True] * 2 + [False] * 6
        assert all(agent.on_disk(sequence("a", 8)))


@pytest.mark.parametrize("tier", sorted(BOTH))
@on_loop
async def test_a_tier_is_trimmed_of_what_is_coldest(tmp_path: Path, tier: Tier) -> None:
    async with DiskAgent(tmp_path) as agent:
        for name in "abcd":
            await agent.store(sequence(name, 8))
        await agent.store(sequence("stranger", 8), OTHER)
        await until(lambda: len(agent.disk_class().residency) == 32)
        await agent.quiet()
        if tier is Tier.DISK:  # or what HOST has would be written again
            for name in "abcd":
                agent.leave_host(sequence(name, 8))
        selector = "default/model"
        expected, used = await agent.upkeep.trim(selector, tier, 20 * PAGE, dry_run=True)
        assert (expected.gone, used) == (12, 32 * PAGE)
        evicted, used = await agent.upkeep.trim(selector, tier, 20 * PAGE, dry_run=False)
        assert (evicted.gone, evicted.pinned, used) == (12, 0, 20 * PAGE)
        there = agent.in_host if tier is Tier.HOST else agent.on_disk
        assert not any(there(sequence("a", 8)))
        assert there(sequence("b", 8)) == [True] * 4 + [False] * 4
        assert all((*there(sequence("c", 8)), *there(sequence("d", 8))))
        other = agent.host_class(OTHER) if tier is Tier.HOST else agent.disk_class(OTHER)
        assert len(other.residency) == 8
        again, used = await agent.upkeep.trim(selector, tier, 20 * PAGE, dry_run=False)
        assert (again.gone, used) == (0, 20 * PAGE)
        agent.audit()
    async with DiskAgent(tmp_path) as agent:
        assert len(agent.disk_class().residency) == (20 if tier is Tier.DISK else 32)


@on_loop
async def test_what_is_leased_or_pinned_stays_and_is_told(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        for name in "abc":
            await agent.store(sequence(name, 4))
        await agent.quiet()
        namespace = agent.session().namespace
        pin = await agent.pins.create(namespace, sequence("a", 2), ttl_seconds=60.0, reason="")
        granted = await agent.load(sequence("b", 4))
        evicted, used = await agent.upkeep.trim("", Tier.HOST, 0, dry_run=False)
        assert (evicted.gone, evicted.pinned, used) == (6, 2, 6 * PAGE)
        assert agent.in_host(sequence("a", 4)) == [True, True, False, False]
        agent.grants.release(granted.lease)
        agent.pins.delete(pin.pin_id)
        evicted, used = await agent.upkeep.trim("", Tier.HOST, 0, dry_run=False)
        assert (evicted.gone, evicted.pinned, used) == (6, 0, 0)

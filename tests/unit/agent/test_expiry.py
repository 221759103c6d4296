"""Time to live of namespaces: a block is a miss when its time is over, in every tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.placing.expiry import Expiry
from kvtier.core.ages import UNKNOWN, Ages
from kvtier.core.block import Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.testing import ManualClock
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import (
    ABSENT,
    MIB,
    OK,
    PRESENT,
    DiskAgent,
    on_loop,
    sequence,
    until,
)

TTL = 100.0
RULES = [NamespaceRule("default/*", TTL)]
KEYS = sequence("a", 8)
MORE = sequence("a", 4, start=8)
OTHER = NamespaceSpec(tenant="other", name="m", block_bytes=(4096,))
UNIX_SECONDS = 1_800_000_000.0


class Clocks:
    """That of the machine, and that of the wall."""

    def __init__(self) -> None:
        self.machine = ManualClock()
        self.wall = ManualClock(UNIX_SECONDS)

    def ages(self) -> Ages:
        """Of an agent that starts now."""
        return Ages(self.machine, self.wall)

    def advance(self, seconds: float) -> None:
        self.machine.advance(seconds)
        self.wall.advance(seconds)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def agent_at(path: Path, clocks: Clocks, **how: Any) -> DiskAgent:
    return DiskAgent(path, rules=how.pop("rules", RULES), ages=clocks.ages(), **how)


async def matched(agent: DiskAgent, spec: NamespaceSpec | None = None) -> int:
    session = agent.session() if spec is None else agent.session(spec)
    answers, _ = await agent.loading.lookup(session, [KEYS])
    return answers[0].matched


def expired(agent: DiskAgent) -> dict[Tier, int]:
    return {each.tier: each.expired_count for each in agent.upkeep.stats("")}


async def in_both(agent: DiskAgent) -> None:
    await agent.store(KEYS)
    await until(lambda: all(agent.on_disk(KEYS)))
    await agent.quiet()


def test_what_is_over_is_a_miss_at_once(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            clocks.advance(TTL - 1)
            assert await matched(agent) == 8
            assert await agent.load_and_release(KEYS) == [OK] * 8
            clocks.advance(1)
            assert await matched(agent) == 0
            assert await agent.load_and_release(KEYS) == [ABSENT] * 8
            assert not any(agent.in_host(KEYS) + agent.on_disk(KEYS))
            agent.audit()

    test()


def test_others_live_for_ever(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await agent.store(KEYS, OTHER)
            await agent.quiet()
            clocks.advance(1e9)
            await agent.expiry.sweep()
            assert await matched(agent, OTHER) == 8

    test()


def test_a_sweep_frees_what_is_over_in_all_tiers(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            clocks.advance(TTL / 2)
            await agent.store(MORE)
            await agent.quiet()
            clocks.advance(TTL / 2)
            await agent.expiry.sweep()
            assert expired(agent) == {Tier.HOST: 8, Tier.DISK: 8}
            assert len(agent.host_class().residency) == len(agent.disk_class().residency) == 4
            assert agent.host_class().counters.evicted == 0
            agent.audit()

    test()


def test_what_is_stored_again_lives_again(tmp_path: Path, clocks: Clocks) -> None:
    """Though what was there before has not been removed yet."""

    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            clocks.advance(TTL / 2)
            assert await agent.store(KEYS) == [PRESENT] * 8  # which does not renew it
            clocks.advance(TTL / 2)
            assert await agent.store(KEYS) == [OK] * 8
            await until(lambda: all(agent.on_disk(KEYS)))
            await agent.quiet()
            clocks.advance(TTL - 1)
            agent.leave_host(KEYS)
            assert await agent.load_and_release(KEYS) == [OK] * 8
            await agent.expiry.sweep()
            assert await matched(agent) == 8
            assert expired(agent) == {Tier.HOST: 8, Tier.DISK: 8}
            agent.audit()

    test()


def test_a_way_through_disk_and_back_makes_nothing_younger(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        how = {"write_policy": WritePolicy.ON_EVICT}
        async with agent_at(tmp_path, clocks, **how) as agent:
            await agent.store(KEYS)
            clocks.advance(60)
            await agent.disk.demotion.flush()
            agent.leave_host(KEYS)
            clocks.advance(20)
            assert await agent.load_and_release(KEYS) == [OK] * 8
            clocks.advance(20)
            assert await agent.load_and_release(KEYS) == [ABSENT] * 8

    test()


@pytest.mark.parametrize(("away", "found"), [(39.0, 8), (41.0, 0), (-1e6, 0), (1e6, 0)])
def test_a_restart_makes_nothing_younger(
    tmp_path: Path, clocks: Clocks, away: float, found: int
) -> None:
    """Where the wall clock is wrong, blocks count as too old rather than as too young."""

    @on_loop
    async def test() -> None:
        how = {"write_policy": WritePolicy.ON_EVICT}
        async with agent_at(tmp_path, clocks, **how) as agent:
            await agent.store(KEYS)
            clocks.advance(58)
            await agent.disk.demotion.flush()
        clocks.wall.seconds += away
        async with agent_at(tmp_path, clocks) as agent:
            assert await matched(agent) == found
            clocks.advance(2)
            await agent.expiry.sweep()
            assert len(agent.disk_class().residency) == 0
            agent.audit()

    test()


def test_blocks_whose_age_is_not_known_are_too_old(tmp_path: Path, clocks: Clocks) -> None:
    """As those of an earlier version; without a time to live they stay."""

    @on_loop
    async def test() -> None:
        clocks.wall.seconds = 0.0
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
        clocks.wall.seconds = UNIX_SECONDS
        async with agent_at(tmp_path, clocks, rules=[]) as agent:
            assert await matched(agent) == 8
        async with agent_at(tmp_path, clocks) as agent:
            assert await matched(agent) == 0

    test()


def test_a_wall_clock_that_jumps_changes_nothing_while_the_agent_runs(
    tmp_path: Path, clocks: Clocks
) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            for jump in (1e7, -3e7):
                clocks.wall.seconds += jump
                await agent.expiry.sweep()
                agent.leave_host(KEYS)
                assert await agent.load_and_release(KEYS) == [OK] * 8
            clocks.machine.advance(TTL)
            assert await matched(agent) == 0

    test()


def test_a_pin_does_not_keep_what_is_over(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            await agent.pins.create(agent.session().namespace, KEYS, ttl_seconds=10 * TTL)
            clocks.advance(TTL)
            await agent.expiry.sweep()
            assert len(agent.pins) == 0
            assert len(agent.host_class().residency) == 0
            agent.audit()

    test()


def test_what_is_leased_ends_with_its_lease(tmp_path: Path, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks) as agent:
            await in_both(agent)
            granted = await agent.load(KEYS)
            clocks.advance(TTL)
            await agent.expiry.sweep()
            assert agent.host_class().used_slots == 8
            agent.grants.release(granted.lease)
            assert agent.host_class().used_slots == 0
            agent.audit()

    test()


class Model:
    """When each sequence was stored, as far as a tier has it. Ends come up to 2 s early."""

    def __init__(self, clocks: Clocks, random: Random) -> None:
        self._clocks = clocks
        self._random = random
        self.host: dict[str, float] = {}
        self.disk: dict[str, float] = {}
        self.judged = {True: 0, False: 0}

    def lives(self, tier: dict[str, float], name: str) -> bool | None:
        """None where it may be either."""
        age = self._clocks.machine() - tier.get(name, -1e9)
        return True if age < TTL - 2 else False if age >= TTL else None

    def is_sure(self, name: str) -> bool:
        return None not in (self.lives(self.host, name), self.lives(self.disk, name))

    async def step(self, agent: DiskAgent, name: str) -> None:
        """Does something, and judges what comes of it."""
        match self._random.randrange(4):
            case 0:
                await self._store(agent, name)
            case 1:
                agent.leave_host(sequence(name, 3))
                self.host.pop(name, None)
            case 2:
                await self._load(agent, name)
            case _:
                self._clocks.advance(self._random.choice([1, 5, 30]))
                if self._random.random() < 0.5:
                    await agent.expiry.sweep()

    async def _store(self, agent: DiskAgent, name: str) -> None:
        keys = sequence(name, 3)
        statuses = await agent.store(keys)
        assert statuses == ([PRESENT] if self.lives(self.host, name) else [OK]) * 3
        if statuses == [OK] * 3:
            self.host[name] = self._clocks.machine()
            if not self.lives(self.disk, name):
                self.disk[name] = self._clocks.machine()
            await until(lambda: all(agent.on_disk(keys)))
            await agent.quiet()

    async def _load(self, agent: DiskAgent, name: str) -> None:
        statuses = await agent.load_and_release(sequence(name, 3))
        in_host = self.lives(self.host, name)
        is_found = bool(in_host or self.lives(self.disk, name))
        assert statuses == [OK if is_found else ABSENT] * 3
        self.judged[is_found] += 1
        if is_found and not in_host:
            self.host[name] = self.disk[name]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_what_a_plain_model_has(tmp_path: Path, clocks: Clocks, seed: int) -> None:
    """Stores, evictions, restarts and time in any order; sweeps change nothing that is found."""
    random = Random(seed)
    model = Model(clocks, random)

    @on_loop
    async def test() -> None:
        for _ in range(3):
            async with agent_at(tmp_path, clocks) as agent:
                for _ in range(60):
                    name = str(random.randrange(6))
                    if model.is_sure(name):
                        await model.step(agent, name)
                    else:
                        clocks.advance(1)
                    agent.audit()
            model.host.clear()
            clocks.advance(random.choice([1, 20]))

    test()
    assert min(model.judged.values()) > 5, model.judged


def test_no_sweep_takes_a_long_turn(tmp_path: Path, clocks: Clocks) -> None:
    """Rows are looked at in slices, and removed in smaller ones."""

    @on_loop
    async def test() -> None:
        async with agent_at(tmp_path, clocks, host_pages=16384, disk_bytes=16 * MIB) as agent:
            for number in range(20):
                await agent.store(sequence(f"{number}", 512))
            clocks.advance(TTL)
            most, sweep = 0, agent.expiry.sweep().__await__()
            before = agent.host_class().counters.expired
            for _ in sweep:
                now = agent.host_class().counters.expired
                most, before = max(most, now - before), now
            assert agent.host_class().counters.expired == 20 * 512
            assert most <= 64

    test()


@pytest.mark.parametrize(("ttl", "interval"), [(1.0, 1.0), (160.0, 10.0), (1e6, 60.0)])
def test_sweeps_are_as_often_as_lives_are_short(ttl: float, interval: float) -> None:
    expiry = Expiry([], [NamespaceRule("a/*", 2e6), NamespaceRule("b/*", ttl), NamespaceRule()])
    assert expiry.interval_seconds == interval


def test_times_go_to_records_and_back_no_younger() -> None:
    clocks = Clocks()
    before = clocks.ages()
    clocks.advance(50.7)
    record = before.to_unix(20)
    after = clocks.ages()
    clocks.advance(10)
    age = after.now() - after.from_unix(record)
    assert 40.7 <= age <= 43
    assert after.from_unix(0) == after.from_unix(int(UNIX_SECONDS + 1000)) == UNKNOWN
    assert before.to_unix(UNKNOWN) == 0


# In the cluster.


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.call("FLUSHALL")
    return running


def heads(server: RedisServer) -> list[bytes]:
    names: list[bytes] = server.call("KEYS", f"{PREFIX}:1:{{*")
    return names


def test_what_comes_from_the_cluster_ends_when_it_would_have_there(
    server: RedisServer, clocks: Clocks
) -> None:
    @on_loop
    async def test() -> None:
        rules = [NamespaceRule("default/*", 300.0)]
        async with ClusterAgent(server.url, rules=rules, ages=clocks.ages()) as one:
            await one.store(KEYS)
            await one.cluster.demotion.flush()
        left = [server.call("TTL", name) for name in heads(server)]
        assert len(left) == 8
        assert all(290 <= each <= 300 for each in left)
        async with ClusterAgent(server.url, rules=rules, ages=clocks.ages(), name="two") as two:
            for name in heads(server):
                server.call("EXPIRE", name, 100)
            assert await two.load(KEYS) == [OK] * 8
            clocks.machine.advance(98)
            assert two.in_host(KEYS) == 8
            clocks.machine.advance(2)
            assert two.in_host(KEYS) == 0

    test()


def test_nothing_without_an_end_comes_from_the_cluster(server: RedisServer, clocks: Clocks) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url, ages=clocks.ages()) as one:
            await one.store(KEYS)
            await one.cluster.demotion.flush()
        for name in heads(server):
            server.call("PERSIST", name)
        rules = [NamespaceRule("default/*", 300.0)]
        async with ClusterAgent(server.url, rules=rules, ages=clocks.ages(), name="two") as two:
            assert await two.load(KEYS) == [ABSENT] * 8

    test()

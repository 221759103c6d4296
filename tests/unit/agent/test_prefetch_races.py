"""Prefetches, loads, stores, evictions and cancellations side by side: no wrong byte, no leak."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.serving.prefetching import PrefetchOptions, Purpose
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.lease import LeaseKind
from kvtier.testing import FaultyIO
from kvtier.testing.faulty_io import Fault
from tests.unit.agent.disk_agent import PAGE, DiskAgent, in_time, on_loop, sequence, until

_CHAINS = 10
_STEPS = 450
_SIDE_BY_SIDE = 8


class Crowd:
    """Workers that come and go, and an operator."""

    def __init__(self, agent: DiskAgent, random: Random) -> None:
        self._agent = agent
        self._random = random
        self._worker = 0

    def _keys(self) -> BlockKeys:
        """A part of a chain of 12, often its beginning."""
        random = self._random
        start = random.choice([0, 0, 0, 4])
        return sequence(f"chain {random.randrange(_CHAINS)}", random.randint(1, 8), start=start)

    async def act(self) -> None:
        agent, random, keys = self._agent, self._random, self._keys()
        session = agent.session(worker=str(self._worker))
        match random.randrange(14):
            case 0 | 1 | 2:
                await agent.loading.prefetch(session, keys)
            case 3:
                seconds = random.choice([0.0, 5.0])
                await agent.loading.lookup(session, [keys], prefetch=True, hold_seconds=seconds)
            case 4:
                namespace, prefetching = session.namespace, agent.loading.prefetching
                await prefetching.ask(namespace, keys, Purpose.EXPECTED)
            case 5 | 6 | 7:
                await agent.load_and_release(keys)
            case 8 | 9:
                await agent.store(keys)
            case 10:
                agent.host_class().evict_one()
                agent.clock.advance(3)
                agent.grants.expire()
                for lease in list(agent.leases):  # of stores that were cancelled; none writes here
                    if lease.kind is LeaseKind.QUARANTINE:
                        agent.grants.release(lease)
            case 11 if random.random() < 0.3:
                self._worker += 1
                agent.sessions.disconnect(session.attachment)
            case _:
                everywhere = random.random() < 0.1
                tiers = frozenset(Tier) if everywhere else frozenset({Tier.HOST})
                await agent.upkeep.evict("", lambda _: keys, tiers, dry_run=False)


@pytest.mark.parametrize("seed", range(3))
@on_loop
async def test_no_wrong_byte_and_no_leak(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    io = FaultyIO(Random(seed), {Fault.SLOW_CALL: 0.3}, slow_seconds=0.002)
    async with DiskAgent(tmp_path, io=io, host_pages=48, depth=2) as agent:
        options = PrefetchOptions(6 * PAGE, max_share=0.8, read_ahead_blocks=random.choice([0, 3]))
        prefetching = agent.loading.prefetching
        prefetching.options = options
        crowd = Crowd(agent, random)
        agent.session()  # loads and stores of all
        tasks: set[asyncio.Task[None]] = set()
        for step in range(_STEPS):
            if step % (_STEPS // 3) == 0:
                await in_time(agent.upkeep.invalidate(""))
                for number in range(_CHAINS):
                    await agent.store_on_disk(sequence(f"chain {number}", 12))
            tasks.add(asyncio.create_task(crowd.act()))
            if step % 5 == 0 and random.random() < 0.3:
                random.choice(list(tasks)).cancel()
            await asyncio.sleep(0)
            assert agent.promotion.prefetch_bytes <= options.max_in_flight_bytes
            while len(tasks) >= _SIDE_BY_SIDE:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    with suppress(asyncio.CancelledError):
                        task.result()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await in_time(task)
        for lease in list(agent.leases):
            agent.grants.release(lease)
        prefetching.options = PrefetchOptions(patience_seconds=0)
        await until(lambda: not prefetching.wish_count and not agent.promotion.ahead_bytes)
        await agent.quiet()
        unused = agent.host_class().unused
        assert unused.brought_count > 10
        gone = unused.used_count + unused.wasted_count
        assert unused.brought_count == gone + unused.count
        residency = agent.host_class().residency
        assert all(residency.slot[row] >= 0 for row in range(4096) if row in unused)
        assert prefetching._waiting_bytes == agent.promotion.prefetch_bytes == 0
        await until(lambda: not agent.disk_class().referenced_slots)  # reads given up end late
        agent.audit()

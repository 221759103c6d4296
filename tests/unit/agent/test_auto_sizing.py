"""HOST shrinks when memory is short, and grows back slowly."""

from __future__ import annotations

import itertools
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier import memory
from kvtier.agent.operating.auto_sizing import AutoSizing, SizingOptions, most_bytes
from kvtier.agent.operating.memory_pressure import KernelMemory, MemoryState
from kvtier.core.block import Tier
from kvtier.testing import ManualClock
from tests.unit.agent.disk_agent import MIB, PAGE, DiskAgent, on_loop, sequence, until

OPTIONS = SizingOptions(
    share=0.5,
    reserve_bytes=64 * MIB,
    least_bytes=2 * MIB,
    most_bytes=None,
    pressure=0.1,
    calm_seconds=60.0,
)
PLENTY = MemoryState(total_bytes=32 * MIB * 8, available_bytes=200 * MIB)


class Memory:
    """Says what a test tells it."""

    def __init__(self, state: MemoryState = PLENTY) -> None:
        self.state = state

    def read(self) -> MemoryState:
        return self.state

    def stall(self, seconds: float) -> None:
        self.state = replace(self.state, stalled_seconds=self.state.stalled_seconds + seconds)


class Sized:
    """The HOST tier of an agent, and who sizes it."""

    def __init__(self, agent: DiskAgent, options: SizingOptions = OPTIONS) -> None:
        self.agent, self.memory, self.clock = agent, Memory(), ManualClock()
        self.sizing = AutoSizing(
            agent.host,
            options,
            self.memory,
            lambda size_bytes: agent.upkeep._resizing.resize(Tier.HOST, size_bytes),
            self.clock,
        )

    @property
    def capacity_mib(self) -> int:
        return self.agent.host.space.capacity_bytes // MIB

    def step(self, seconds: float = 2.0) -> bool:
        self.clock.advance(seconds)
        return self.sizing.step()

    async def settle(self) -> None:
        await until(lambda: not self.agent.host.is_shrinking)

    async def fill(self) -> None:
        for number in range(self.agent.host.space.capacity_bytes // PAGE // 64):
            await self.agent.store(sequence(f"{number}", 64))
            await self.agent.quiet()


@on_loop
async def test_it_shrinks_while_tasks_wait_for_memory(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=16 * 256, disk_bytes=32 * MIB) as agent:
        sized = Sized(agent)
        await sized.fill()
        allocated = agent.host.space.allocated_bytes
        assert allocated > 14 * MIB
        seen = [sized.capacity_mib]
        for _ in range(30):
            sized.memory.stall(1.0)
            assert sized.step()
            await sized.settle()
            seen.append(sized.capacity_mib)
            assert agent.host.space.allocated_bytes <= agent.host.space.capacity_bytes
        assert seen == sorted(seen, reverse=True)
        assert seen[1] >= 12
        assert seen[-1] == 2
        assert sized.sizing.reason == "tasks wait for memory 50% of the time"
        assert sized.sizing.shrunk_count >= 5
        agent.audit()


@on_loop
async def test_a_step_goes_from_what_is_allocated(tmp_path: Path) -> None:
    """A capacity that nobody uses gives nothing back."""
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        await agent.store(sequence("a", 8))
        sized.memory.stall(1.0)
        sized.step()
        assert sized.capacity_mib == 2


@on_loop
async def test_it_grows_slowly_when_memory_was_not_short_for_long(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        sized.memory.stall(1.0)
        sized.step()
        assert sized.capacity_mib == 2
        sized.step(59.0)
        assert sized.capacity_mib == 2
        grown = []
        for _ in range(80):
            sized.step()
            grown.append(sized.capacity_mib)
        assert all(0 <= after - before <= 2 for before, after in itertools.pairwise(grown))
        assert grown[0] > 2
        assert grown[-1] == 128  # half of the memory
        assert sized.sizing.reason == "memory is not short"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"limit_count": 3}, "the cgroup has come to its limit"),
        ({"available_bytes": 63 * MIB}, "63 MiB are available, less than memory_reserve"),
    ],
)
@on_loop
async def test_other_signs_of_shortage(tmp_path: Path, change: dict[str, int], reason: str) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        sized.memory.state = replace(PLENTY, **change)
        sized.step()
        assert sized.capacity_mib == 2
        assert sized.sizing.reason == reason


@on_loop
async def test_it_does_not_grow_into_the_reserve(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        sized.memory.state = replace(PLENTY, available_bytes=65 * MIB)
        for _ in range(50):
            sized.step(100.0)
        assert sized.capacity_mib == 64


@on_loop
async def test_a_smaller_limit_of_the_cgroup_holds_at_once(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        sized.memory.state = replace(PLENTY, total_bytes=96 * MIB)
        sized.step()
        assert sized.capacity_mib == 32  # what the reserve leaves
        assert sized.sizing.most_bytes == 32 * MIB


@on_loop
async def test_a_capacity_that_somebody_sets_stays(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        sized = Sized(agent)
        agent.upkeep.resize(Tier.HOST, 40 * MIB)
        sized.memory.stall(1.0)
        assert not sized.step()
        assert sized.capacity_mib == 40
        assert "it stays" in sized.sizing.reason


@on_loop
async def test_stats_show_it(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64 * 256) as agent:
        assert not agent.upkeep.stats("")[0].auto_reason
        sized = Sized(agent)
        agent.upkeep._resizing.automatic = sized.sizing
        sized.memory.stall(1.0)
        sized.step()
        stats = agent.upkeep.stats("")[0]
        assert (stats.auto_least_bytes, stats.auto_most_bytes) == (2 * MIB, 128 * MIB)
        assert stats.auto_shrunk_count == 1
        assert "tasks wait" in stats.auto_reason


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [(1024, None, 512), (100, None, 36), (1024, 100, 100), (10, None, 2)],
    ids=["share", "reserve", "most", "least"],
)
def test_bounds(total: int, most: int | None, expected: int) -> None:
    options = replace(OPTIONS, most_bytes=None if most is None else most * MIB)
    assert most_bytes(options, MemoryState(total * MIB, 0)) == expected * MIB


def test_what_the_kernel_says_of_cgroups_is_read(tmp_path: Path) -> None:
    inner, outer = tmp_path / "a" / "b", tmp_path / "a"
    inner.mkdir(parents=True)
    (inner / "memory.pressure").write_text(
        "some avg10=1.00 avg60=0.50 avg300=0.10 total=2500000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"
    )
    (inner / "memory.events").write_text("low 9\nhigh 2\nmax 3\noom 7\noom_kill 7\n")
    (outer / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 0\noom_kill 0\n")
    state = KernelMemory([inner, outer], node=tmp_path / "none").read()
    assert state.stalled_seconds == 2.5
    assert state.limit_count == 10
    assert 0 < state.available_bytes <= state.total_bytes


def test_without_a_cgroup_the_node_counts(tmp_path: Path) -> None:
    node = tmp_path / "memory"
    node.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7000000\n")
    assert KernelMemory([tmp_path / "gone"], node).read().stalled_seconds == 7.0
    assert KernelMemory([], tmp_path / "none").read().stalled_seconds == 0.0


def test_this_machine_says_something() -> None:
    state = KernelMemory().read()
    assert mmap.PAGESIZE < state.available_bytes <= state.total_bytes
    assert state.total_bytes <= os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE + (1 << 30)
    assert memory.total_bytes() == state.total_bytes

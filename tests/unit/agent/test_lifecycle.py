"""`agent.lifecycle`, and of the order in which DISK starts and stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.tiers.disk import Disk, DiskSettings
from kvtier.errors import AgentUnavailableError, ConfigError
from kvtier.tiers.host import HostTier
from tests.unit.agent.disk_agent import (
    MIB,
    OK,
    DiskAgent,
    GatedIO,
    in_time,
    on_loop,
    sequence,
    until,
)


def test_work_is_refused_while_draining() -> None:
    lifecycle = Lifecycle()
    lifecycle.require_serving()
    lifecycle.is_draining = True
    with pytest.raises(AgentUnavailableError, match="draining"):
        lifecycle.require_serving()
    lifecycle.is_draining = False
    lifecycle.require_serving()


@on_loop
async def test_a_directory_that_another_agent_has_is_refused_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    """The first of two directories is free; its lock is given back."""
    async with DiskAgent(tmp_path):
        host = HostTier(MIB)
        paths = [tmp_path / "free", tmp_path / "volume-0"]
        with pytest.raises(ConfigError, match="another agent"):
            Disk(DiskSettings(paths, MIB), host)
        host.close()
    async with DiskAgent(tmp_path / "free"):
        pass


@on_loop
async def test_a_stop_does_not_wait_for_a_device_that_hangs(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io, timeout_seconds=0.5, depth=1) as agent:
        await agent.store_on_disk(sequence("a", 1))
        io.shut("write")
        await agent.store(sequence("b", 2))
        await until(lambda: io.waiting("write"))
        await in_time(agent.disk.demotion.close())
        await in_time(agent.disk.writer.close())
        assert len(asyncio.all_tasks()) <= 2  # this one, and perhaps the probe
        io.let_pass()
        await agent.quiet()


@on_loop
async def test_what_ends_during_a_stop_disturbs_nothing(tmp_path: Path) -> None:
    """`on_loop` fails for an exception in a callback. Here `__aexit__` opens the gate."""
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        await agent.store_on_disk(sequence("a", 1))
        io.shut("write")
        await agent.store(sequence("b", 2))
        await until(lambda: io.waiting("write"))
        await agent.disk.demotion.close()
        await agent.disk.writer.close()


@on_loop
async def test_an_agent_that_never_recovered_stops(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, is_started=False) as agent:
        assert await agent.store(sequence("a", 2)) == [OK] * 2
        assert not agent.disk.is_recovered


@on_loop
async def test_nothing_is_on_disk_before_a_block_is(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        agent.session()
        await agent.quiet()
    files = [each.name for each in (tmp_path / "volume-0").rglob("*") if each.is_file()]
    assert files == ["kvtier.lock"]

"""What continues a block that is nowhere is not stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvtier.core.block import BlockKeys, BlockStatus
from tests.unit.agent.disk_agent import OK, SPEC, DiskAgent, on_loop, sequence

KEYS = sequence("a", 8)
REST = BlockKeys(KEYS.lane, KEYS.hashes[4:], KEYS.hashes[3], 4)
BEGINNING = sequence("a", 4)
WINDOWS = replace(SPEC, name="windows", extra={"group.0": "window of 128"})


@on_loop
async def test_a_child_whose_parent_is_nowhere_is_refused(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        assert await agent.store(REST) == [BlockStatus.REFUSED] * 4
        assert agent.host_class().counters.unadmitted == 4
        assert agent.host_class().counters.refused == 0
        await agent.store(BEGINNING)
        assert await agent.store(REST) == [OK] * 4
        await agent.quiet()
        agent.audit()


@on_loop
async def test_a_parent_that_was_evicted_counts_no_more(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, admission="second_hit") as agent:
        await agent.store(BEGINNING)
        await agent.quiet()
        agent.leave_host(BEGINNING)
        assert await agent.store(REST) == [BlockStatus.REFUSED] * 4


@on_loop
async def test_a_parent_on_disk_is_enough(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await agent.store_on_disk(BEGINNING)
        assert await agent.store(REST) == [OK] * 4


@on_loop
async def test_a_parent_that_is_being_stored_is_enough(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        session = agent.session()
        await agent.storing.reserve(session, [BEGINNING])
        granted = await agent.storing.reserve(session, [REST])
        assert granted.statuses == [OK] * 4


@on_loop
async def test_a_parent_in_the_same_call_is_enough(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        granted = await agent.storing.reserve(agent.session(), [BEGINNING, REST])
        assert granted.statuses == [OK] * 8


@on_loop
async def test_what_follows_a_refused_part_in_the_same_call_is_refused(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        end = BlockKeys(KEYS.lane, KEYS.hashes[6:], KEYS.hashes[5], 6)
        middle = BlockKeys(KEYS.lane, KEYS.hashes[4:6], KEYS.hashes[3], 4)
        granted = await agent.storing.reserve(agent.session(), [middle, end])
        assert granted.statuses == [BlockStatus.REFUSED] * 4


@on_loop
async def test_a_group_with_a_sliding_window_needs_no_parent(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        assert await agent.store(REST, WINDOWS) == [OK] * 4

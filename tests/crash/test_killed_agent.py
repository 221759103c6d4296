"""Agents killed at any moment: what they find again is right, and what was flushed is found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from tests.crash.agents import Key, Load, disk_agent, disk_stats, flush, go_on, read, restart
from tests.faults.blocks import spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

log = logging.getLogger(__name__)

_KIB = 1 << 10
_SPECS = (spec_of("small", 4 * _KIB), spec_of("large", 24 * _KIB))
_THREADS = 3
#: A directory starts anew, by way of an eviction, before it is full.
_KEPT_CYCLES = 4
_LIFE_SECONDS = (0.05, 0.4)


@dataclass
class Tally:
    """Over all cycles."""

    loads: int = 0
    wrong: set[Key] = field(default_factory=set)
    lost: set[Key] = field(default_factory=set)
    flushed: dict[Key, None] = field(default_factory=dict)
    unflushed: dict[Key, None] = field(default_factory=dict)
    flushes: int = 0


def _live_and_die(agent: AgentProcess, random: Random, cycle: int, tally: Tally) -> None:
    """Mixed load; a flush half of the time; death at a random moment."""
    name = f"cycle {cycle}"
    with Load(agent.address, _SPECS, cycle, threads=_THREADS, name=name) as load:
        with AdminClient(agent.admin_address, timeout_seconds=10.0) as admin:
            go_on(random.uniform(*_LIFE_SECONDS))
            if random.random() < 0.6:
                stored = load.stored
                flush(admin)
                stats = disk_stats(admin)
                if not stats.evicted_count and not stats.unwritten_count:
                    tally.flushed.update(dict.fromkeys(stored))
                    tally.flushes += 1
                go_on(random.uniform(0, _LIFE_SECONDS[0]))
        agent.kill()
    tally.wrong |= load.wrong
    tally.unflushed.update(dict.fromkeys(load.stored))


def _read_everything(agent: AgentProcess, tally: Tally) -> None:
    with Client(agent.address, timeout_seconds=10.0) as client:
        reading = read(client, _SPECS, list(tally.flushed | tally.unflushed))
    tally.loads += reading.count
    tally.wrong |= reading.wrong
    tally.lost |= reading.missing & tally.flushed.keys()
    tally.unflushed = dict.fromkeys(key for key in tally.unflushed if key in reading.right)


def _evict_everything(agent: AgentProcess, tally: Tally) -> set[Key]:
    with AdminClient(agent.admin_address) as admin:
        for spec in _SPECS:
            admin.evict_blocks(spec.label)
    evicted = set(tally.flushed | tally.unflushed)
    tally.flushed, tally.unflushed = {}, {}
    return evicted


def _still_there(agent: AgentProcess, keys: Sequence[Key]) -> set[Key]:
    with Client(agent.address, timeout_seconds=10.0) as client:
        return read(client, _SPECS, keys).right


@pytest.mark.timeout(900)
def test_what_was_flushed_survives_any_death(tmp_path: Path) -> None:
    tally, random, cycles = Tally(), Random(1), times(150)
    with disk_agent(tmp_path / "agent", host="8MiB", disk="1GiB") as agent:
        for cycle in range(cycles):
            _live_and_die(agent, random, cycle, tally)
            restart(agent)
            _read_everything(agent, tally)
            assert not tally.wrong, f"cycle {cycle}"
            assert not tally.lost, f"cycle {cycle}"
            if cycle % _KEPT_CYCLES == _KEPT_CYCLES - 1:
                evicted = _evict_everything(agent, tally)
                agent.kill()
                restart(agent)
                assert not _still_there(agent, list(evicted))
    log.info("%d loads after restarts, %d flushes", tally.loads, tally.flushes)
    assert tally.loads >= 100 * cycles
    assert tally.flushes >= cycles // 4


@pytest.mark.timeout(900)
def test_what_a_small_disk_finds_again_is_right(tmp_path: Path) -> None:
    tally, random, cycles = Tally(), Random(2), times(60)
    evictions = 0
    with disk_agent(tmp_path / "agent", host="2MiB", disk="16MiB") as agent:
        for cycle in range(cycles):
            _live_and_die(agent, random, cycle, tally)
            restart(agent)
            tally.unflushed |= tally.flushed
            tally.flushed.clear()  # it may have been evicted
            _read_everything(agent, tally)
            assert not tally.wrong, f"cycle {cycle}"
            with AdminClient(agent.admin_address) as admin:
                evictions += disk_stats(admin).evicted_count
    log.info("%d loads after restarts, %d evictions", tally.loads, evictions)
    assert tally.loads >= 50 * cycles

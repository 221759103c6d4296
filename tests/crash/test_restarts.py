"""Warm restarts, changed capacities and paths, second agents, unknown versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from kvtier import Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from kvtier.tiers.disk import format as fmt
from tests.crash.agents import (
    Key,
    disk_agent,
    disk_settings,
    disk_stats,
    flush,
    read,
    restart,
    store,
    wait_until_recovered,
)
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.crash

_KIB, _MIB = 1 << 10, 1 << 20
_SPEC = spec_of("small", 8 * _KIB)
_LARGE = spec_of("large", 64 * _KIB)
_SPECS = (_SPEC, _LARGE)


def _store(
    agent: AgentProcess, name: str, chains: int, specs: Sequence[NamespaceSpec] = _SPECS
) -> list[Key]:
    keys = []
    with Client(agent.address, timeout_seconds=10.0) as client:
        for number in range(chains):
            spec = specs[number % len(specs)]
            keys += store(client, spec, hashes_of(f"{name}/{number}", 16))
    return keys


def _share_found(agent: AgentProcess, keys: Sequence[Key]) -> float:
    with Client(agent.address, timeout_seconds=10.0) as client:
        reading = read(client, _SPECS, keys)
    assert reading.wrong == set()
    return len(reading.right) / len(keys)


def test_a_clean_stop_keeps_everything(tmp_path: Path) -> None:
    keys: list[Key] = []
    with disk_agent(tmp_path / "agent", host="32MiB", disk="256MiB") as agent:
        for turn in range(times(5)):
            keys += _store(agent, f"turn {turn}", 32)
            assert agent.stop() == 0
            restart(agent)
            assert _share_found(agent, keys) >= 0.999


def test_a_killed_agent_keeps_what_was_flushed(tmp_path: Path) -> None:
    keys: list[Key] = []
    with disk_agent(tmp_path / "agent", host="32MiB", disk="256MiB") as agent:
        for turn in range(times(10)):
            keys += _store(agent, f"turn {turn}", 16)
            with AdminClient(agent.admin_address) as admin:
                flush(admin)
            agent.kill()
            restart(agent)
            assert _share_found(agent, keys) >= 0.99


class Sampler:
    """Compares what directories take on their device with a capacity, all the time."""

    def __init__(self, paths: Sequence[Path], capacity_bytes: int) -> None:
        self._paths = paths
        self._capacity_bytes = capacity_bytes
        self._done = threading.Event()
        self.most_bytes = 0
        self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.002):
            self.most_bytes = max(self.most_bytes, sum(map(used_bytes, self._paths)))
            self.samples += 1

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        assert self.samples
        assert self.most_bytes <= self._capacity_bytes


def used_bytes(path: Path) -> int:
    """As `du` counts: of the directory and all in it."""
    total = _blocks_of(path)
    for directory, names, files in os.walk(path):
        total += sum(_blocks_of(Path(directory) / name) for name in (*names, *files))
    return total


def _blocks_of(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


@contextmanager
def _life(
    directory: Path, paths: Sequence[Path], capacity_bytes: int
) -> Iterator[tuple[AgentProcess, Sampler]]:
    """One start with these settings; measured from when its tables are read."""
    agent = AgentProcess(directory, disk_settings(directory, "4MiB", str(capacity_bytes), paths))
    with agent:
        wait_until_recovered(agent)
        with Sampler(paths, capacity_bytes) as sampler:
            yield agent, sampler


def test_no_restart_makes_it_exceed_its_capacity(tmp_path: Path) -> None:
    random = Random(1)
    directory, all_paths = tmp_path / "agent", [tmp_path / "a", tmp_path / "b"]
    lives = 0
    for number in range(times(20)):
        paths = random.choice([all_paths, all_paths[:1], all_paths[1:], all_paths[::-1]])
        capacity = random.choice([32, 33, 40, 64, 96]) * _MIB
        with _life(directory, paths, capacity) as (agent, sampler):
            with AdminClient(agent.admin_address) as admin:
                keys = _store(agent, f"life {number}", 60 + capacity // _MIB)
                flush(admin)
                assert disk_stats(admin).allocated_bytes <= capacity
            assert _share_found(agent, keys) > 0
            assert sampler.most_bytes > _MIB
            lives += 1
            if random.random() < 0.5:
                agent.kill()
    assert lives == times(20)


def test_a_directory_that_another_agent_uses_is_refused(tmp_path: Path) -> None:
    with disk_agent(tmp_path / "agent", host="8MiB", disk="32MiB") as agent:
        keys = _store(agent, "first", 4)
        settings = disk_settings(
            tmp_path / "second", "8MiB", "32MiB", [tmp_path / "free", tmp_path / "agent/disk"]
        )
        command = [sys.executable, "-m", "kvtier", "agent"]
        for key, value in {"socket_dir": tmp_path / "second", **settings}.items():
            command += ["--set", f"{key}={value}"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert second.returncode not in (0, -9)
        assert "another agent uses it" in second.stderr
        assert str(tmp_path / "agent/disk") in second.stderr
        assert "Traceback" not in second.stderr
        assert _share_found(agent, keys) == 1


def test_slabs_of_an_unknown_version_are_set_aside_once(tmp_path: Path) -> None:
    directory, disk = tmp_path / "agent", tmp_path / "agent/disk"
    capacity = 32 * _MIB
    settings = disk_settings(directory, "4MiB", str(capacity))
    with AgentProcess(directory, settings) as agent:
        keys = _store(agent, "old", 60)
    tables = list(disk.glob("slab-*.table"))
    for table in tables:
        _set_version(table, fmt.VERSION + 1)
    old = {each.name for each in disk.glob("slab-*")}
    with AgentProcess(directory, settings) as agent:
        wait_until_recovered(agent)
        assert _share_found(agent, keys) == 0
        assert {each.name for each in (disk / "aside").iterdir()} <= old
        assert f"format version {fmt.VERSION + 1}" in agent.log
        said = agent.log.count("starts empty")
        assert said == 1
        agent.kill()
        restart(agent)
        assert agent.log.count("starts empty") == said, "it is said once"
        with Sampler([disk], capacity):
            fresh = _store(agent, "new", 120)
            with AdminClient(agent.admin_address) as admin:
                flush(admin)
        assert _share_found(agent, fresh) > 0
    with AgentProcess(directory, settings) as agent:
        wait_until_recovered(agent)
        assert _share_found(agent, fresh) > 0


def _set_version(table: Path, version: int) -> None:
    with table.open("r+b") as file:
        file.seek(len(fmt.MAGIC))
        file.write(version.to_bytes(4, "little"))


def test_an_agent_starts_again_while_its_directory_is_gone(tmp_path: Path) -> None:
    with disk_agent(tmp_path / "agent", host="8MiB", disk="32MiB") as agent:
        _store(agent, "first", 4)
        agent.stop()
        shutil.rmtree(tmp_path / "agent/disk")
        restart(agent)
        keys = _store(agent, "second", 4)
        with AdminClient(agent.admin_address) as admin:
            flush(admin)
        agent.kill()
        restart(agent)
        wait_until(lambda: _share_found(agent, keys) == 1, 5.0)

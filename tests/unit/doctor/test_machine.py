"""What `kvtier doctor` finds out about kernel, limits, directories and devices."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from kvtier import memory
from kvtier.config import AgentConfig, load_config
from kvtier.doctor.accelerators import accelerator_findings, has_accelerator
from kvtier.doctor.clock import clock_findings
from kvtier.doctor.disk import disk_findings, file_system_of
from kvtier.doctor.examination import worst_first
from kvtier.doctor.finding import Finding, Verdict, ok, problem, skipped, warning
from kvtier.doctor.kernel import kernel_findings
from kvtier.doctor.limits import cgroup_limit_bytes, limit_findings
from kvtier.doctor.sockets import socket_findings


def config_of(**settings: object) -> AgentConfig:
    """Settings are named with __ for the dot."""
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return load_config(None, {"KVTIER_CONFIG": os.devnull}, pairs).config


def told(findings: Iterable[Finding], verdict: Verdict) -> list[str]:
    found = [each for each in findings if each.verdict is verdict]
    assert all(
        bool(each.advice) == (verdict in (Verdict.PROBLEM, Verdict.WARNING)) for each in found
    )
    return [f"{each.subject}: {each.found}" for each in found]


def test_the_kernel_of_this_machine_can_do_it() -> None:
    found = list(kernel_findings())
    assert told(found, Verdict.PROBLEM) == []
    [line] = told(found, Verdict.OK)
    assert all(word in line for word in ("memfd", "hole punching", "pidfd"))
    assert memory.can_populate() == (told(found, Verdict.WARNING) == [])


def _of_memory(capacity: str, allocated_bytes: int = 0) -> Finding:
    config = config_of(tiers__host__capacity=capacity)
    [found] = [
        each for each in limit_findings(config, allocated_bytes, False) if each.subject == "memory"
    ]
    return found


def test_memory_is_compared_with_what_host_wants() -> None:
    assert _of_memory("1MiB").verdict is Verdict.OK
    assert _of_memory("15TiB").verdict is Verdict.WARNING
    assert "HOST stops growing" in _of_memory("15TiB").found
    assert _of_memory("15TiB", 2**50).verdict is Verdict.OK  # it has that already


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_all_cgroups_counts(tmp_path: Path, version: int) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n" if version == 2 else "3:cpu:/x\n2:memory,hugetlb:/a/b\n0::/\n")
    root = tmp_path / "cg" if version == 2 else tmp_path / "cg" / "memory"
    name = "memory.max" if version == 2 else "memory.limit_in_bytes"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / name).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert cgroup_limit_bytes(own, tmp_path / "cg") is None
    (root / "a" / name).write_text(f"{64 << 20}\n")
    assert cgroup_limit_bytes(own, tmp_path / "cg") == 64 << 20


def test_sockets_need_a_directory_of_ones_own(tmp_path: Path) -> None:
    new = tmp_path / "new" / "run"
    assert told(socket_findings(config_of(socket_dir=new)), Verdict.OK) == [
        f"sockets: {new} will be made"
    ]
    assert not new.exists()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    [line] = told(socket_findings(config_of(socket_dir=shared)), Verdict.PROBLEM)
    assert "chmod" in line


def _disk(path: Path, **settings: object) -> AgentConfig:
    settings = {"min_free": 0, "capacity": "16MiB", **settings}
    return config_of(
        tiers__disk__paths=path, **{f"tiers__disk__{k}": v for k, v in settings.items()}
    )


def _of_disk(config: AgentConfig, *, is_measured: bool = False) -> list[Finding]:
    return list(disk_findings(config, has_agent=False, is_measured=is_measured))


def test_a_good_directory_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = _of_disk(_disk(tmp_path), is_measured=True)
    assert told(found, Verdict.PROBLEM) == []
    assert any("writes" in each.found and "reads" in each.found for each in found)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_will_be_made_is_measured_where_it_will_be(tmp_path: Path) -> None:
    found = _of_disk(_disk(tmp_path / "a" / "b"), is_measured=True)
    assert told(found, Verdict.PROBLEM) == []
    assert os.listdir(tmp_path) == []


def test_what_is_no_directory_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [line] = told(_of_disk(_disk(tmp_path / "file")), Verdict.PROBLEM)
    assert line == f"DISK {tmp_path}/file: {tmp_path}/file is not a directory"


def test_a_directory_of_another_agent_is_a_problem(tmp_path: Path) -> None:
    with (tmp_path / "kvtier.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [line] = told(_of_disk(_disk(tmp_path)), Verdict.PROBLEM)
        assert line.endswith("another agent uses it")
        running = disk_findings(_disk(tmp_path), has_agent=True, is_measured=False)
        assert told(running, Verdict.PROBLEM) == []
    assert told(_of_disk(_disk(tmp_path)), Verdict.PROBLEM) == []


def test_space_is_compared_with_what_disk_wants(tmp_path: Path) -> None:
    [line] = told(_of_disk(_disk(tmp_path, min_free="900TiB")), Verdict.PROBLEM)
    assert "nothing is written there" in line
    lines = told(_of_disk(_disk(tmp_path, capacity="900TiB")), Verdict.WARNING)
    assert any("cannot grow" in line for line in lines)


def test_memory_is_no_disk(tmp_path: Path) -> None:
    place = Path("/dev/shm")
    if file_system_of(place) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    lines = told(_of_disk(_disk(place / "kvtier")), Verdict.WARNING)
    assert any("in memory (tmpfs)" in line for line in lines)


def test_a_file_of_the_future_is_a_wrong_clock(tmp_path: Path) -> None:
    assert told(clock_findings(_disk(tmp_path)), Verdict.WARNING) == []
    slab = tmp_path / "slab-00.data"
    slab.touch()
    os.utime(slab, (time.time() + 3600, time.time() + 3600))
    [line] = told(clock_findings(_disk(tmp_path)), Verdict.WARNING)
    assert "in the future" in line


def test_without_a_device_registration_is_not_looked_at() -> None:
    if has_accelerator():
        pytest.skip("there is a device")
    [line] = told(accelerator_findings(), Verdict.SKIPPED)
    assert "not looked at" in line


def test_the_worst_comes_first() -> None:
    found = [ok("a", ""), skipped("b", ""), problem("c", "", "x"), warning("d", "", "x")]
    assert [each.subject for each in worst_first(found)] == ["c", "d", "a", "b"]


def test_an_event_loop_without_priority_is_told_of() -> None:
    config = config_of(tiers__host__capacity="1MiB")
    with subprocess.Popen(["sh", "-c", "echo; read _"], stdin=-1, stdout=-1) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        lines = told(list(limit_findings(config, 0, False, shell.pid)), Verdict.WARNING)
    assert any(line.startswith("RLIMIT_NICE: the event loop has no priority") for line in lines)
    lines = told(list(limit_findings(config, 0, False)), Verdict.OK)
    assert any(line.startswith("RLIMIT_NICE") for line in lines) or os.geteuid() != 0


def test_the_limits_of_a_running_agent_are_its_own() -> None:
    config = config_of(tiers__host__capacity="1MiB")
    with subprocess.Popen(
        ["sh", "-c", "ulimit -n 512; echo; read _"], stdin=-1, stdout=-1
    ) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        found = list(limit_findings(config, 0, False, shell.pid))
    assert "RLIMIT_NOFILE: at most 512" in told(found, Verdict.PROBLEM)[0]
    assert any("the agent's cgroup" in each.found for each in found)

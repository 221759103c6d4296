"""`kvtier doctor` as it is typed, with and without an agent."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvtier import Client
from kvtier.testing import AgentProcess
from tests.faults.blocks import spec_of, store
from tests.unit.cli.command import REPOSITORY, kvtier

_SMALL = ("--set", "tiers.host.capacity=64MiB", "--set", "tiers.host.memory_reserve=0")


def _found(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Without what others on this machine do: engines that other tests start."""
    done = kvtier("doctor", "--json", "--quick", *arguments)
    assert done.stderr == ""
    found = json.loads(done.stdout)["findings"]
    return done.returncode, [each for each in found if not each["subject"].startswith("engine")]


def test_without_an_agent_it_looks_at_the_machine(tmp_path: Path) -> None:
    paths = ("--set", f"socket_dir={tmp_path}/run", "--set", f"tiers.disk.paths={tmp_path}/disk")
    _, found = _found(*_SMALL, *paths)
    assert [each for each in found if each["verdict"] == "problem"] == []
    subjects = {each["subject"] for each in found}
    assert subjects >= {
        *(
            "agent",
            "kernel",
            "RLIMIT_NOFILE",
            "RLIMIT_MEMLOCK",
            "RLIMIT_NICE",
            "cgroup",
            "memory",
            "sockets",
        ),
        *(f"DISK {tmp_path}/disk", "CLUSTER", "GPU", "vLLM", "clock"),
    }
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "disk").exists()


def test_the_worst_comes_first_and_is_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    paths = ("--set", f"socket_dir={tmp_path}/run", "--set", f"tiers.disk.paths={tmp_path}/file")
    done = kvtier("doctor", *_SMALL, *paths)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "problem" in lines[0]
    assert lines[1].startswith("problem ")
    assert lines[2].lstrip().startswith("do: ")
    assert any(line.startswith("problem ") and "is not a directory" in line for line in lines)


def test_a_wrong_configuration_is_told_and_the_rest_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("tiers: {host: {capacity: much}}\n")
    status, found = _found("--config", str(file), "--address", f"unix:{tmp_path}/admin.sock")
    assert status == 1
    problems = [each for each in found if each["verdict"] == "problem"]
    assert any("tiers.host.capacity" in each["found"] for each in problems)
    assert any(each["subject"] == "agent" for each in problems)
    assert any(each["subject"] == "kernel" for each in found)


def test_a_running_agent_is_asked_too(tmp_path: Path) -> None:
    settings = {"tiers.host.capacity": "8MiB", "tiers.host.memory_reserve": 0}
    with AgentProcess(settings=settings) as agent:
        with Client(agent.address, timeout_seconds=5) as client:
            for dtype in ("bf16", "fp16"):
                store(client.namespace(replace(spec_of("llama"), dtype=dtype)), "a", 4)
        _, found = _found("--address", agent.admin_address, *_SMALL)
        [cgroup] = [each["found"] for each in found if each["subject"] == "cgroup"]
        assert cgroup.startswith("the agent's cgroup")
        said = {each["found"]: each for each in found if each["verdict"] == "warning"}
        assert any("dtype (bf16, fp16)" in each for each in said)
        different = [each for each in said if "the agent runs with 8MiB" in each]
        assert different == ["tiers.host.capacity is 64MiB here, and the agent runs with 8MiB"]
        kvtier("drain", "--grace", "0", "--address", agent.admin_address)
        _, found = _found("--address", agent.admin_address)
        assert "the agent is drained" in found[0]["found"]
        kvtier("resume", "--address", agent.admin_address)
        agent.pause()
        status, found = _found("--address", agent.admin_address, "--timeout", "0.3", *_SMALL)
        agent.resume()
    assert status == 1
    [problem] = [each for each in found if each["subject"] == "agent"]
    assert "did not answer" in problem["found"]


def test_too_few_descriptors_are_a_problem(tmp_path: Path) -> None:
    program = "from kvtier.cli import main; main()"
    arguments = ("doctor", "--quick", "--set", f"socket_dir={tmp_path}/run", *_SMALL)
    command = shlex.join([sys.executable, "-c", program, *arguments])
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 1024; exec {command}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "problem  RLIMIT_NOFILE: at most 1,024 descriptors" in done.stdout

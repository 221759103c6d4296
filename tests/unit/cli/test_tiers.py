"""`kvtier tiers` and `kvtier tier set`, against an admin socket."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.agent.operating.stats import TierState, TierStats
from kvtier.cli.exit import ExitCode
from kvtier.cli.tier import parsed
from kvtier.core.block import Tier
from kvtier.errors import AgentUnavailableError, InvalidRequestError
from tests.unit.cli.command import PROGRAM, REPOSITORY, kvtier
from tests.unit.cli.scripted_agent import ScriptedAgent

GIB = 2**30


def tier(tier: Tier, capacity: int, used: int, **fields: object) -> TierStats:
    nothing = (0, 0, 0, 0, 0, 0, 0, 0)
    sizes = (capacity * GIB, used * GIB, used * GIB)
    stats = TierStats(tier, *sizes, 0, used * 100, *nothing[1:])
    for name, value in fields.items():
        setattr(stats, name, value)
    return stats


@pytest.fixture(scope="module", autouse=True)
def _grpc_for_asyncio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps open what gRPC opens for the first server of a process and closes after the last."""
    with ScriptedAgent(tmp_path_factory.mktemp("agent")):
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ScriptedAgent]:
    with ScriptedAgent(tmp_path) as running:
        running.upkeep.tiers = [
            tier(Tier.HOST, 64, 60, policy="lru"),
            tier(Tier.DISK, 100, 10, state=TierState.DEGRADED, reason="/mnt/a: full"),
        ]
        yield running


def on_terminal(answer: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command with a terminal as its input, at which `answer` is typed."""
    operator, terminal = os.openpty()
    try:
        os.write(operator, answer.encode())
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=REPOSITORY,
            stdin=terminal,
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(operator)
        os.close(terminal)


def test_tiers_are_a_table(agent: ScriptedAgent) -> None:
    agent.upkeep.tiers[0].capacity_bytes = 40 * GIB
    done = kvtier("tiers", "--address", agent.address)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0][:4] == ["tier", "state", "capacity", "allocated"]
    assert lines[0][4:] == ["used", "blocks", "policy", "admission"]
    assert " ".join(lines[2]) == "HOST active 40.0 GiB 60.0 GiB 60.0 GiB 6,000 lru -"
    assert " ".join(lines[3]) == "DISK degraded 100 GiB 10.0 GiB 10.0 GiB 1,000 - -"
    assert "HOST is shrinking: 20.0 GiB more than its capacity" in done.stdout
    assert "DISK is degraded: /mnt/a: full" in done.stdout


def test_tiers_as_json_have_every_field(agent: ScriptedAgent) -> None:
    document = json.loads(kvtier("tiers", "--json", "--address", agent.address).stdout)
    host, disk = document["tiers"]
    assert (host["tier"], host["capacity_bytes"], host["policy"]) == ("TIER_HOST", 64 * GIB, "lru")
    assert (disk["state"], disk["block_count"]) == ("DEGRADED", 1000)


def test_a_larger_capacity_is_set_without_asking(agent: ScriptedAgent) -> None:
    done = kvtier("tier", "set", "host.capacity=96GiB", "--address", agent.address)
    assert (done.returncode, done.stdout) == (0, "HOST: capacity 96.0 GiB\n")
    assert agent.upkeep.asked == [("resize", Tier.HOST, 96 * GIB)]


def test_it_waits_until_all_are_smaller(agent: ScriptedAgent) -> None:
    command = ("tier", "set", "host.capacity=58GiB", "tiers.disk.capacity=9.5GiB", "--yes")
    done = kvtier(*command, "--json", "--address", agent.address)
    assert done.returncode == 0
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["done"] for report in reports][-2:] == [False, True]
    assert all(not report["done"] for report in reports[:-1])
    for each in reports[-1]["tiers"]:
        assert each["allocated_bytes"] <= each["capacity_bytes"]
    assert agent.upkeep.asked == [
        ("resize", Tier.HOST, 58 * GIB),
        ("resize", Tier.DISK, 19 * GIB // 2),
    ]


def test_it_does_not_wait_if_it_is_told_so(agent: ScriptedAgent) -> None:
    command = ("tier", "set", "host.capacity=2GiB", "--yes", "--no-wait", "--address")
    assert kvtier(*command, agent.address).stdout == "HOST: capacity 2.00 GiB\n"
    shown = kvtier(*command, agent.address, "--json")
    [report] = [json.loads(line) for line in shown.stdout.splitlines()]
    assert report["done"] is False


def test_it_says_what_would_go_and_asks(agent: ScriptedAgent) -> None:
    done = on_terminal("y\n", "tier", "set", "host.capacity=58GiB", "--address", agent.address)
    assert done.returncode == 0
    question = b"Shrink HOST from 64.0 GiB to 58.0 GiB, evicting about 200 blocks, 2.00 GiB? [y/N]"
    assert question in done.stderr
    assert agent.upkeep.asked == [("resize", Tier.HOST, 58 * GIB)]


def test_a_no_changes_nothing(agent: ScriptedAgent) -> None:
    command = ("tier", "set", "host.capacity=96GiB", "disk.capacity=50GiB", "--address")
    done = on_terminal("n\n", *command, agent.address)
    assert done.returncode == ExitCode.FAILED
    assert b"Shrink DISK from 100 GiB to 50.0 GiB, evicting few blocks? [y/N]" in done.stderr
    assert not agent.upkeep.asked


def test_nobody_can_be_asked_without_a_terminal(agent: ScriptedAgent) -> None:
    done = kvtier("tier", "set", "host.capacity=2GiB", "--address", agent.address)
    assert (done.returncode, done.stderr) == (
        ExitCode.USAGE,
        "kvtier: not a terminal: pass --yes\n",
    )
    assert not agent.upkeep.asked


def test_another_change_meanwhile_is_said(agent: ScriptedAgent) -> None:
    command = [*PROGRAM, "tier", "set", "host.capacity=1GiB", "--yes", "--address", agent.address]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as running:
        while not agent.upkeep.asked:
            assert running.poll() is None
        agent.upkeep.tiers[0].capacity_bytes = 3 * GIB
        _, said = running.communicate(timeout=60)
    assert running.returncode == ExitCode.FAILED
    assert "HOST was given another capacity meanwhile: 3.00 GiB" in said


def test_a_tier_that_is_not_there_is_named(agent: ScriptedAgent) -> None:
    agent.upkeep.tiers.pop()
    command = ("tier", "set", "host.capacity=96GiB", "disk.capacity=50GiB", "--yes", "--address")
    done = kvtier(*command, agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: this agent has no DISK tier: set tiers.disk.paths\n"
    assert not agent.upkeep.asked


def test_what_the_agent_says_against_it_is_passed_on(agent: ScriptedAgent) -> None:
    agent.upkeep.error = AgentUnavailableError("DISK is RECOVERING; resize it when it is ready")
    done = kvtier("tier", "set", "disk.capacity=50GiB", "--yes", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: DISK is RECOVERING; resize it when it is ready\n"


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["host.capacity=1Gb"], "host.capacity: '1Gb' is not a size"),
        (["host.capacity"], "host.capacity: '' is not a size"),
        (["host.capacity=1023KiB"], "host.capacity: must be at least 1MiB"),
        (["disk.capacity=15MiB"], "disk.capacity: must be at least 16MiB"),
        (["cluster.capacity=1GiB"], "write host.capacity=SIZE or disk.capacity=SIZE"),
        (["gpu.capacity=1GiB"], "set when the agent starts, in tiers.gpu.devices"),
        (["tiers.gpu.devices=1GiB"], "set when the agent starts, in tiers.gpu.devices"),
        (["host.capacity=1GiB", "host.capacity=2GiB"], "host.capacity: it is given twice"),
    ],
)
def test_a_bad_assignment_is_named(assignments: list[str], said: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        parsed(assignments)
    assert said in str(failure.value)

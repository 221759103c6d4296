"""Verbs that change what an agent does and holds, against an admin socket."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvtier.agent.operating import stats
from kvtier.cli.exit import ExitCode
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.errors import AgentUnavailableError, NotFoundError
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import TierStats
from tests.unit.cli.command import PROGRAM, REPOSITORY, kvtier
from tests.unit.cli.scripted_agent import ScriptedAgent

MIB = 2**20
BOTH = frozenset({Tier.HOST, Tier.DISK})


@pytest.fixture(scope="module", autouse=True)
def _grpc_for_asyncio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps open what gRPC opens for the first server of a process and closes after the last."""
    with ScriptedAgent(tmp_path_factory.mktemp("agent")):
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ScriptedAgent]:
    with ScriptedAgent(tmp_path) as running:
        yield running


def scrubbed(scanned: int, corrupt: int, *, is_done: bool) -> SimpleNamespace:
    return SimpleNamespace(
        scanned_count=scanned,
        corrupt_count=corrupt,
        scanned_bytes=scanned * MIB,
        total_count=4,
        is_done=is_done,
    )


def drained(leases: int, *, is_done: bool) -> SimpleNamespace:
    return SimpleNamespace(
        session_count=1, lease_count=leases, unflushed_bytes=leases * MIB, is_done=is_done
    )


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


def test_flush_says_what_was_written(agent: ScriptedAgent) -> None:
    done = kvtier("flush", "--address", agent.address)
    assert (done.returncode, done.stdout) == (0, "flushed 3.00 MiB to DISK\n")
    shown = kvtier("flush", "disk", "--json", "--address", agent.address)
    assert json.loads(shown.stdout) == {"flushed_bytes": 3 * MIB}
    assert agent.upkeep.asked == [("flush", Tier.DISK)] * 2


@pytest.mark.parametrize("verb", ["flush", "scrub", "drain"])
def test_an_agent_that_cannot_is_not_an_agent_that_is_missing(
    agent: ScriptedAgent, verb: str
) -> None:
    agent.upkeep.error = AgentUnavailableError("DISK: /mnt/a is full; make room")
    done = kvtier(verb, "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: DISK: /mnt/a is full; make room\n"


def test_a_tier_that_is_not_configured_is_named(agent: ScriptedAgent) -> None:
    agent.upkeep.error = NotFoundError("no DISK tier: set tiers.disk.paths")
    done = kvtier("flush", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: no DISK tier: set tiers.disk.paths\n"


def test_a_sound_tier_is_code_0(agent: ScriptedAgent) -> None:
    agent.upkeep.scrubbed = [scrubbed(2, 0, is_done=False), scrubbed(4, 0, is_done=True)]
    done = kvtier("scrub", "--address", agent.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "verified 4 blocks, 4.00 MiB: all sound\n"
    assert agent.upkeep.asked == [("scrub", Tier.DISK, 0)]


def test_damage_is_code_1_and_told(agent: ScriptedAgent) -> None:
    agent.upkeep.scrubbed = [scrubbed(4, 1, is_done=True)]
    done = kvtier("scrub", "disk", "--rate", "200MiB", "--address", agent.address)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
    assert "4 blocks, 4.00 MiB: 1 damaged and dropped" in done.stdout
    assert agent.upkeep.asked == [("scrub", Tier.DISK, 200 * MIB)]


def test_progress_as_json_is_one_object_per_line(agent: ScriptedAgent) -> None:
    agent.upkeep.scrubbed = [scrubbed(2, 0, is_done=False), scrubbed(4, 1, is_done=True)]
    done = kvtier("scrub", "--json", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["scanned_count"] for report in reports] == [2, 4]
    assert [report["done"] for report in reports] == [False, True]


def test_a_call_that_ends_early_has_failed(agent: ScriptedAgent) -> None:
    agent.upkeep.scrubbed = [scrubbed(2, 0, is_done=False)]
    done = kvtier("scrub", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: the agent ended the call before it was done: see its log\n"


def test_drain_ends_when_the_agent_may_be_stopped(agent: ScriptedAgent) -> None:
    agent.upkeep.drained = [drained(2, is_done=False), drained(0, is_done=True)]
    done = kvtier("drain", "--grace", "2.5", "--address", agent.address)
    assert (done.returncode, done.stdout) == (0, "drained; 1 session still open\n")
    shown = kvtier("drain", "--json", "--grace", "0", "--address", agent.address)
    reports = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [report["lease_count"] for report in reports] == [2, 0]
    assert agent.upkeep.asked == [("drain", 2.5), ("drain", 0.0)]


def test_resume_ends_a_drain(agent: ScriptedAgent) -> None:
    done = kvtier("resume", "--address", agent.address)
    assert (done.returncode, done.stdout) == (0, "the agent takes work\n")
    assert kvtier("resume", "--json", "--address", agent.address).stdout == "{}\n"
    assert agent.upkeep.asked == [("resume",)] * 2


def test_a_namespace_is_invalidated_when_it_is_confirmed(agent: ScriptedAgent) -> None:
    done = on_terminal("y\n", "invalidate", "default/m", "--address", agent.address)
    assert done.returncode == 0
    assert b"Invalidate 8 blocks of default/m? [y/N]" in done.stderr
    assert done.stdout.strip() == b"invalidated 1 namespace with 8 blocks"
    assert agent.upkeep.asked[-1] == ("invalidate", "default/m")


def test_a_no_invalidates_nothing(agent: ScriptedAgent) -> None:
    done = on_terminal("n\n", "invalidate", "default/m", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert agent.upkeep.asked == [("evict", "default/m", BOTH, True)]


def test_a_dry_run_invalidates_nothing(agent: ScriptedAgent) -> None:
    done = kvtier("invalidate", "default/m", "--dry-run", "--address", agent.address)
    assert done.stdout == "would invalidate 1 namespace with 8 blocks\n"
    shown = kvtier("invalidate", "default/m", "--dry-run", "--json", "--address", agent.address)
    assert json.loads(shown.stdout) == {"namespace_count": 1, "block_count": 8}
    assert agent.upkeep.asked == [("evict", "default/m", BOTH, True)] * 2


def test_a_namespace_without_blocks_is_invalidated_too(agent: ScriptedAgent) -> None:
    agent.upkeep.blocks = {}
    done = kvtier("invalidate", "default/m", "--yes", "--json", "--address", agent.address)
    assert json.loads(done.stdout) == {"namespace_count": 1, "block_count": 0}
    assert agent.upkeep.asked == [("invalidate", "default/m")]


@pytest.mark.parametrize(
    ("options", "tiers", "said"),
    [
        ([], BOTH, "8 blocks of default/m"),
        (["--tier", "disk"], frozenset({Tier.DISK}), "5 blocks of default/m from DISK"),
        (["--tier", "host", "--tier", "disk"], BOTH, "8 blocks of default/m from HOST and DISK"),
    ],
)
def test_eviction_is_from_the_tiers_that_are_named(
    agent: ScriptedAgent, options: list[str], tiers: frozenset[Tier], said: str
) -> None:
    done = kvtier("evict", "default/m", "--yes", *options, "--address", agent.address)
    assert done.stdout == f"evicted {said}\n"
    assert agent.upkeep.asked == [("evict", "default/m", tiers, False)]


def test_a_namespace_has_blocks_for_each_tier(agent: ScriptedAgent) -> None:
    with AdminClient(agent.address) as client:
        [info] = client.list_namespaces()
    assert list(info.block_count) == [0, 3, 6, 0]
    assert list(info.used_bytes) == [0, 4 * 4096, 8 * 4096, 0]
    assert list(info.pinned_bytes) == [0, 4096, 2 * 4096, 0]
    assert (info.rule, info.ttl.seconds) == ("default/*", 3600)
    assert list(info.limit_bytes) == [0, 3 << 20, 0, 0]
    assert list(info.occupied_bytes) == [0, 2 << 20, 5, 0]


def test_an_agent_is_ready_when_it_says_so(agent: ScriptedAgent) -> None:
    with AdminClient(agent.address) as client:
        assert not client.is_ready()
        for is_ready in (True, False):
            agent.set_ready(is_ready)
            assert client.is_ready() is is_ready


@dataclass
class OneTier:
    tier: Tier
    state: int
    reason: str = ""


def test_stats_have_every_tier(agent: ScriptedAgent) -> None:
    agent.upkeep.tiers = [OneTier(Tier.HOST, 1), OneTier(Tier.DISK, 4, "reading /mnt/a")]
    with AdminClient(agent.address) as client:
        host, disk = client.get_stats().tiers
    assert (host.tier, host.state) == (block_pb2.TIER_HOST, TierStats.ACTIVE)
    assert (disk.tier, disk.state) == (block_pb2.TIER_DISK, TierStats.RECOVERING)
    assert disk.reason == "reading /mnt/a"


def test_all_that_an_agent_counts_has_its_field() -> None:
    counted = {each.name for each in fields(stats.TierStats)}
    assert counted == set(TierStats.DESCRIPTOR.fields_by_name)

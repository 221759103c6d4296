"""`kvtier events` and the example of a router, against agents."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvtier import Client, NamespaceSpec
from kvtier.testing import AgentProcess
from tests.faults.blocks import hashes_of
from tests.unit.cli.command import PROGRAM, REPOSITORY, kvtier

SPEC = NamespaceSpec(name="m", block_bytes=(4096,))


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with AgentProcess(settings={"tiers.host.capacity": "4MiB"}) as running:
        store(running, "a", 5)
        yield running


def store(agent: AgentProcess, sequence: str, count: int) -> None:
    with Client(agent.address) as client:
        blocks = np.zeros((count, 4096), np.uint8)
        client.namespace(SPEC).store(hashes_of(sequence, count), blocks)


def events(agent: AgentProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kvtier("events", *arguments, "--address", agent.admin_address)


def test_without_options_it_shows_what_there_is(agent: AgentProcess) -> None:
    done = events(agent, "default/m")
    assert done.returncode == 0, done.stderr
    first = hashes_of("a", 1)[0].hex()[:16]
    assert f"stored  HOST  5 blocks from position 0: {first} ..." in done.stdout


def test_json_is_what_routers_get(agent: AgentProcess) -> None:
    messages = [
        json.loads(line) for line in events(agent, "default/m", "--json").stdout.split("\n")[:-1]
    ]
    assert messages[-1]["snapshot_done"]
    assert messages[0]["namespace"] == SPEC.label
    stored = messages[0]["events"][0]["blocks_stored"]
    assert stored["tier"] == "TIER_HOST"
    assert stored["keys"]["hashes"] == b"".join(hashes_of("a", 5)).hex()


def test_following_shows_changes_until_it_is_interrupted(agent: AgentProcess) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KVTIER_")}
    with subprocess.Popen(
        [*PROGRAM, "events", "default/m", "-f", "--json", "--address", agent.admin_address],
        cwd=REPOSITORY,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert next_message(process)["events"] == []
            store(agent, "b", 3)
            while not (message := next_message(process))["events"]:
                pass
            keys = message["events"][0]["blocks_stored"]["keys"]
            assert keys["hashes"].startswith(hashes_of("b", 1)[0].hex())
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()


def next_message(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    message: dict[str, Any] = json.loads(process.stdout.readline())
    return message


def test_a_namespace_that_is_not_there_is_named(agent: AgentProcess) -> None:
    done = events(agent, "default/none", "--follow")
    assert done.returncode == 1
    assert "no namespace 'default/none'" in done.stderr


def test_a_router_that_follows_events_hits_more_than_one_that_takes_turns() -> None:
    done = subprocess.run(
        [sys.executable, "examples/router.py", "--requests", "150"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rates = dict(re.findall(r"(\w+): (0\.\d+) of", done.stdout))
    assert float(rates["by_prefix"]) > float(rates["in_turns"]) + 0.05, done.stdout

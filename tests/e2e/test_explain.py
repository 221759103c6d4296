"""`kvtier explain` and `kvtier record`, against an agent."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier import Client, Namespace, NamespaceSpec
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.testing.agent_process import AgentProcess
from tests.faults.waiting import wait_until
from tests.unit.cli.command import PROGRAM, REPOSITORY, kvtier

BLOCK_BYTES = 64 << 10
TOKENS = list(range(16 * 8 + 5))
HASHES = block_hashes(TOKENS, 16)


def spec(**fields: Any) -> NamespaceSpec:
    return NamespaceSpec(
        name="m",
        block_tokens=16,
        block_bytes=(BLOCK_BYTES,),
        hash_algorithm=ALGORITHM,
        **fields,
    )


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    settings = {"tiers.host.capacity": "4MiB", "history.blocks": 1000}
    with AgentProcess(settings=settings) as running:
        yield running


def store(namespace: Namespace, hashes: list[bytes]) -> list[int]:
    return list(namespace.store(hashes, np.zeros((len(hashes), BLOCK_BYTES), np.uint8)))


def explained(agent: AgentProcess, *arguments: str) -> list[dict[str, Any]]:
    answer = kvtier("explain", *arguments, "--json", "--address", agent.admin_address)
    assert answer.returncode == 0, answer.stderr
    blocks: list[dict[str, Any]] = json.loads(answer.stdout)["blocks"]
    return blocks


def test_where_blocks_are_and_why_not(agent: AgentProcess, tmp_path: Path) -> None:
    tokens = tmp_path / "prompt.json"
    tokens.write_text(json.dumps(TOKENS))
    tail = block_hashes(range(9000, 9000 + 16 * 80), 16)
    with Client(agent.address, timeout_seconds=10.0) as client:
        namespace = client.namespace(spec(tenant="explained", dtype="bf16"))
        label = spec(tenant="explained", dtype="bf16").label
        store(namespace, HASHES[:4])
        found = explained(agent, label, "--tokens", str(tokens))
        assert [each["fate"] for each in found] == ["CACHED"] * 4 + ["UNKNOWN"] * 4
        assert found[0]["tiers"] == ["TIER_HOST"]
        assert [each["hash"] for each in found] == [each.hex() for each in HASHES]

        for start in range(0, 80, 20):
            store(namespace, tail[start : start + 20])
        table = kvtier(
            "explain", label, "--tokens", str(tokens), "--address", agent.admin_address
        ).stdout
        assert "0 leading of 8 blocks are here (0 of 128 tokens)" in table
        assert "lru: to make room for others of its namespace" in table
        assert "of 1,024 blocks, 16.0 KiB" in table

        sibling = spec(tenant="explained", dtype="fp8")
        store(client.namespace(sibling), HASHES[4:6])
        [block] = explained(agent, label, HASHES[5].hex())
        assert (block["fate"], block["layout_differences"]) == ("OTHER_LAYOUT", ["dtype"])

        answer = kvtier("explain", "explained/m", HASHES[0].hex(), "--address", agent.admin_address)
        assert answer.returncode == 2
        assert f"choose one of {label}, {sibling.label}" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either hashes or --tokens"),
        (("ab",), "HASH ab: 1 byte"),
        (("00" * 16, "00" * 32), "HASH: all hashes must have one length"),
    ],
)
def test_what_is_wrong_is_named(agent: AgentProcess, arguments: tuple[str, ...], said: str) -> None:
    answer = kvtier("explain", "default/m", *arguments, "--address", agent.admin_address)
    assert answer.returncode == 2
    assert said in answer.stderr


def test_too_few_tokens_are_refused(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("1 2 3")
    with Client(agent.address, timeout_seconds=10.0) as client:
        client.namespace(spec(tenant="short")).lookup(HASHES)
    answer = kvtier(
        "explain", "short/m", "--tokens", str(tmp_path / "short"), "--address", agent.admin_address
    )
    assert answer.returncode == 2
    assert "3 tokens, and a block has 16" in answer.stderr


# Recordings.


class Recording:
    """`kvtier record` in a process of its own, under way when it is made."""

    def __init__(self, agent: AgentProcess, path: Path, *options: str) -> None:
        self.path = path
        command = [*PROGRAM, "record", str(path), "--address", agent.admin_address, *options]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def lines(self) -> list[dict[str, Any]]:
        """Those that are whole, also of a file that is being written."""
        if not self.path.exists():
            return []
        whole: list[str] = []
        try:
            with (gzip.open if self.path.suffix == ".gz" else open)(self.path, "rt") as file:
                whole.extend(file)
        except EOFError:
            pass
        return [json.loads(line) for line in whole if line.endswith("\n")]

    def ended(self, number: int | None = None) -> tuple[str, int]:
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return out, self.process.returncode


@pytest.fixture(scope="module")
def namespace(agent: AgentProcess) -> Iterator[Namespace]:
    with Client(agent.address, timeout_seconds=10.0) as client:
        yield client.namespace(spec(tenant="recorded"))


def asked_until_recorded(namespace: Namespace, recording: Recording) -> None:
    """The recorder may not have begun when the first lookup comes."""

    def is_recorded() -> bool:
        namespace.lookup(HASHES)
        return len(recording.lines()) > 2

    wait_until(is_recorded, 20.0)


@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_that_is_interrupted_ends_with_what_it_has(
    agent: AgentProcess, namespace: Namespace, tmp_path: Path, name: str, number: int
) -> None:
    recording = Recording(agent, tmp_path / name, "--namespace", "recorded/m")
    asked_until_recorded(namespace, recording)
    said, code = recording.ended(number)
    head, *lines = recording.lines()
    assert head == {"kvtier_recording": 1}
    assert code == 0
    assert said == f"recorded {len(lines)} requests, {8 * len(lines)} blocks\n"
    assert lines[0].pop("timestamp") >= 0
    assert lines[0] == {
        "namespace": spec(tenant="recorded").label,
        "block_tokens": 16,
        "block_bytes": BLOCK_BYTES,
        "group": 0,
        "shard": 0,
        "position": 0,
        "hash_ids": [int.from_bytes(each[:8]) for each in HASHES],
    }


@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz"])
def test_a_recorder_that_is_killed_leaves_whole_lines(
    agent: AgentProcess, namespace: Namespace, tmp_path: Path, name: str
) -> None:
    recording = Recording(agent, tmp_path / name)
    asked_until_recorded(namespace, recording)
    before = len(recording.lines())
    recording.ended(signal.SIGKILL)
    lines = recording.lines()
    assert len(lines) >= before
    assert all(len(each["hash_ids"]) == 8 for each in lines[1:])


def test_a_recording_ends_by_itself_and_replaces_nothing_unasked(
    agent: AgentProcess, tmp_path: Path
) -> None:
    path = tmp_path / "day.jsonl"
    said, code = Recording(agent, path, "--duration", "0.2s", "--json").ended()
    assert (json.loads(said), code) == ({"requests": 0, "blocks": 0, "lost": 0}, 0)
    path.write_text("precious")
    answer = kvtier("record", str(path), "--address", agent.admin_address)
    assert answer.returncode == 2
    assert "pass --yes to replace it" in answer.stderr
    assert path.read_text() == "precious"
    _, code = Recording(agent, path, "--duration", "0.2s", "--yes").ended()
    assert code == 0
    assert path.read_text() == '{"kvtier_recording":1}\n'


def test_no_file_is_made_without_an_agent_or_a_namespace(
    agent: AgentProcess, tmp_path: Path
) -> None:
    path = tmp_path / "day.jsonl"
    nobody = kvtier("record", str(path), "--address", f"unix:{tmp_path}/admin.sock")
    assert nobody.returncode == 3
    unknown = kvtier(
        "record", str(path), "--namespace", "default/typo", "--address", agent.admin_address
    )
    assert unknown.returncode == 1
    assert not path.exists()


def test_an_agent_that_stops_ends_a_recording(tmp_path: Path) -> None:
    with AgentProcess(settings={"tiers.host.capacity": "4MiB"}) as agent:
        recording = Recording(agent, tmp_path / "day.jsonl")
        wait_until(lambda: recording.lines(), 20.0)
        agent.stop()
        _, code = recording.ended()
    assert code == 3
    assert recording.lines() == [{"kvtier_recording": 1}]

"""`kvtier record`, against an agent."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier import Client, Namespace, NamespaceSpec
from kvtier.client.service import call_of
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.testing.agent_process import AgentProcess
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until
from tests.unit.cli.command import PROGRAM, REPOSITORY, kvtier

BLOCK_BYTES = 64 << 10
HASHES = block_hashes(range(16 * 8), 16)
SPEC = NamespaceSpec(
    name="m",
    tenant="recorded",
    block_tokens=16,
    block_bytes=(BLOCK_BYTES,),
    hash_algorithm=ALGORITHM,
)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with AgentProcess(settings={"tiers.host.capacity": "4MiB"}) as running:
        yield running


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
        namespace = client.namespace(SPEC)
        namespace.lookup(HASHES[:1])  # registers it: a recording may ask for it by name
        yield namespace


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
        "namespace": SPEC.label,
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
    nowhere = kvtier("record", f"{tmp_path}/no/day", "--address", agent.admin_address)
    assert nowhere.returncode == 2
    assert f"{tmp_path}/no/day: No such file or directory" in nowhere.stderr
    assert not path.exists()


def test_an_agent_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    with AgentProcess(settings={"tiers.host.capacity": "4MiB"}) as agent:
        os.kill(agent.pid, signal.SIGSTOP)
        try:
            answer = kvtier("record", str(path), "--address", agent.admin_address)
        finally:
            os.kill(agent.pid, signal.SIGCONT)
    assert answer.returncode != 0
    assert "did not answer" in answer.stderr or "deadline" in answer.stderr.lower(), answer.stderr
    assert not path.exists()


def test_an_agent_that_stops_ends_a_recording(tmp_path: Path) -> None:
    with AgentProcess(settings={"tiers.host.capacity": "4MiB"}) as agent:
        recording = Recording(agent, tmp_path / "day.jsonl")
        wait_until(lambda: recording.lines(), 20.0)
        agent.stop()
        _, code = recording.ended()
    assert code == 3
    assert recording.lines() == [{"kvtier_recording": 1}]


def test_a_slow_recorder_is_told_what_it_lost_and_slows_nobody(
    agent: AgentProcess, namespace: Namespace
) -> None:
    many, count = hashes_of("many", 8192), 400
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    with (
        # It takes no more ahead than it has to, however fast the connection is.
        grpc.insecure_channel(agent.admin_address, options) as channel,
        ThreadPoolExecutor(1) as reader,
    ):
        service = pb.DESCRIPTOR.services_by_name["CacheAdmin"]
        record = call_of(channel, service.methods_by_name["RecordRequests"])
        requests = record(pb.RecordRequestsRequest(namespace=SPEC.label))
        next(requests)
        for _ in range(count):
            namespace.lookup(many)
        received: list[pb.RecordedRequest] = []

        def read_on() -> None:
            for request in requests:
                received.append(request)
                if len(request.hashes) == 1:
                    return

        reading, marks = reader.submit(read_on), 0
        while not reading.done():
            namespace.lookup(HASHES[:1])
            marks += 1
        reading.result()
        requests.cancel()
    came = sum(len(each.hashes) == len(many) for each in received)
    lost = sum(each.lost_count for each in received)
    assert lost > 0
    assert count <= came + lost <= count + marks

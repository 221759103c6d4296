"""Who is another, by layout, tenant or uid, gets nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from kvtier import BlockStatus, Client
from kvtier.client.admin import AdminClient
from kvtier.errors import AccessDeniedError, LayoutConflictError
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import running_agent
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, judge, spec_of, store

pytestmark = pytest.mark.faults

_STRANGER = 65534


def test_layouts_of_one_name_work_side_by_side_and_are_told_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        running_agent("64MiB") as agent,
        AdminClient(agent.admin_address) as admin,
        Client(agent.address) as client,
    ):
        specs = [spec_of(dtype="bf16"), spec_of(block_bytes=BLOCK_BYTES // 2, dtype="fp8")]
        namespaces = [client.namespace(each) for each in specs]
        hashes = hashes_of("same", 8)
        assert store(namespaces[0], "same", 8) == 8
        with caplog.at_level(logging.WARNING, "kvtier"):
            assert namespaces[1].lookup(hashes).matched == 0
        assert "block_bytes" in caplog.text
        assert "dtype" in caplog.text
        assert store(namespaces[1], "same", 8) == 8
        for each in namespaces:
            assert judge(each, hashes) == Verdict(right=8)
        listed = admin.list_namespaces()
        assert len({each.layout_digest for each in listed}) == 2
        for info in listed:
            assert set(info.sibling_differences) == {"block_bytes", "dtype"}


def test_an_extra_field_alone_tells_layouts_apart() -> None:
    with running_agent("64MiB") as agent, Client(agent.address) as client:
        plain = client.namespace(spec_of())
        salted = client.namespace(replace(spec_of(), extra={"backend": "other"}))
        assert store(plain, "same", 4) == 4
        assert salted.lookup(hashes_of("same", 4)).matched == 0
        assert judge(salted, hashes_of("same", 4)) == Verdict()


def test_a_rejected_layout_is_told_the_fields() -> None:
    with (
        running_agent("64MiB", layout_conflict="reject") as agent,
        Client(agent.address) as client,
    ):
        assert store(client.namespace(spec_of()), "same", 4) == 4
        with pytest.raises(LayoutConflictError, match="revision"):
            client.namespace(spec_of(revision="2")).lookup(hashes_of("same", 4))
        assert judge(client.namespace(spec_of()), hashes_of("same", 4)) == Verdict(right=4)


def test_tenants_do_not_see_each_others_blocks() -> None:
    with running_agent("64MiB") as agent, Client(agent.address) as client:
        mine, theirs = (client.namespace(spec_of(tenant=each)) for each in ("a", "b"))
        assert store(mine, "same", 4) == 4
        assert theirs.lookup(hashes_of("same", 4)).matched == 0
        statuses = theirs.load(hashes_of("same", 4)).statuses
        assert set(statuses) == {BlockStatus.ABSENT}


def _stranger(agent: AgentProcess, tenant: str) -> list[object]:
    with WorkerProcess(scripts.connect_as, agent.address, _STRANGER, tenant) as worker:
        answer: list[object] = worker.hear()
    return answer


needs_root = pytest.mark.skipif("os.geteuid() != 0", reason="becomes another user")


@needs_root
def test_another_uid_cannot_connect() -> None:
    with running_agent("64MiB") as agent:
        agent.directory.chmod(0o700)
        assert _stranger(agent, "default")[0] == "AgentUnavailableError"


@needs_root
def test_the_sockets_themselves_keep_another_uid_out() -> None:
    with running_agent("64MiB") as agent:
        agent.directory.chmod(0o755)
        assert _stranger(agent, "default")[0] == "AgentUnavailableError"
        assert {(agent.directory / f"{each}.sock").stat().st_mode & 0o777 for each in _SOCKETS} == {
            0o600
        }


_SOCKETS = ("worker", "attach", "admin")


@needs_root
def test_another_uid_in_the_group_may_connect_and_not_attach() -> None:
    with running_agent("64MiB", socket_group=_STRANGER) as agent:
        name, message = _stranger(agent, "default")
        assert name == "AccessDeniedError"
        assert f"uid {_STRANGER}" in str(message)
        assert "workers" in str(message)
        assert (agent.directory / "admin.sock").stat().st_mode & 0o777 == 0o600


@needs_root
@pytest.mark.parametrize("identity", ["uid", "gid"])
def test_a_listed_worker_gets_its_tenants_and_no_others(identity: str) -> None:
    rules = f"[{{{identity}: {_STRANGER}, tenants: [theirs]}}, {{uid: 0}}]"
    with (
        running_agent("64MiB", socket_group=_STRANGER, workers=rules) as agent,
        Client(agent.address) as client,
    ):
        for tenant in ("theirs", "ours"):
            assert store(client.namespace(spec_of(tenant=tenant)), "secret", 4) == 4
        assert _stranger(agent, "theirs") == ["OK", 4]
        name, message = _stranger(agent, "ours")
        assert name == "AccessDeniedError"
        assert "'ours'" in str(message)


def test_the_agents_own_uid_needs_a_rule_once_there_are_rules() -> None:
    with (
        running_agent("64MiB", workers=f"[{{uid: {_STRANGER}}}]") as agent,
        Client(agent.address) as client,
        pytest.raises(AccessDeniedError, match="workers"),
    ):
        client.namespace(spec_of()).lookup(hashes_of("any", 1))


def test_a_second_agent_in_one_directory_is_refused() -> None:
    with running_agent("1MiB") as agent, Client(agent.address) as client:
        command = [
            sys.executable,
            "-m",
            "kvtier",
            "agent",
            "--set",
            f"socket_dir={agent.directory}",
        ]
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert second.returncode != 0
        assert "another agent is running there" in " ".join(second.stderr.split())
        client.namespace(spec_of()).lookup(hashes_of("x", 1))

"""`kvtier explain`, against an agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier import Client, Namespace, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.errors import InvalidRequestError, NotFoundError
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.testing.agent_process import AgentProcess
from tests.unit.cli.command import kvtier

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
    settings = {
        "tiers.host.capacity": "4MiB",
        "tiers.host.policy": "lru",
        "history.blocks": 1000,
    }
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
        ((), "name the blocks, by hashes, --request, --tokens or --text"),
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


def test_a_request_without_a_namespace_or_keys_is_refused(agent: AgentProcess) -> None:
    with (
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        client.namespace(spec(tenant="refused")).lookup(HASHES)
        with pytest.raises(InvalidRequestError, match="namespace is empty"):
            admin.explain_blocks("", HASHES)
        with pytest.raises(InvalidRequestError, match=r"keys\.group is 1"):
            admin.explain_blocks("refused/m", HASHES, group=1)
        with pytest.raises(NotFoundError, match="nobody/m"):
            admin.explain_blocks("nobody/m", HASHES)


def test_the_history_is_counted_and_can_be_switched_off(agent: AgentProcess) -> None:
    with AdminClient(agent.admin_address) as admin:
        history = admin.get_stats().history
        assert (history.capacity, history.memory_bytes) == (1024, 1024 * 16 + 32)
    settings = {"tiers.host.capacity": "4MiB", "history.blocks": 0}
    with AgentProcess(settings=settings) as other, AdminClient(other.admin_address) as admin:
        assert admin.get_stats().history.memory_bytes == 0
        assert "history: off" in kvtier("stats", "--address", other.admin_address).stdout

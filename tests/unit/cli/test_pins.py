"""`kvtier pin`, `unpin`, `pins` and `evict --force`, against an admin socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.cli.duration import seconds_of
from kvtier.cli.exit import ExitCode
from kvtier.client.admin import AdminClient
from kvtier.errors import InvalidRequestError, NotFoundError, OverloadedError
from tests.unit.cli.command import kvtier
from tests.unit.cli.scripted_agent import ScriptedAgent

HASHES = ["ab" * 32, "cd" * 32, "ef" * 32]


@pytest.fixture(scope="module", autouse=True)
def _grpc_for_asyncio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps open what gRPC opens for the first server of a process and closes after the last."""
    with ScriptedAgent(tmp_path_factory.mktemp("agent")):
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ScriptedAgent]:
    with ScriptedAgent(tmp_path) as running:
        yield running


def test_a_pin_is_made_shown_and_ended(agent: ScriptedAgent) -> None:
    at = ("--address", agent.address)
    made = kvtier("pin", "default/m", *HASHES, "--ttl", "1h", "--reason", "system prompt", *at)
    assert made.stderr == ""
    assert made.stdout == "pin 0000000000000001: 2 of 3 blocks, 8.00 KiB, for 1 h 0 min\n"
    assert agent.pins.asked == [(3, 3600.0, "system prompt")]
    shown = kvtier("pins", *at).stdout
    assert "0000000000000001" in shown
    assert "system prompt" in shown
    ended = kvtier("unpin", "0000000000000001", *at)
    assert ended.stdout == "pin 0000000000000001 has ended\n"
    assert kvtier("pins", *at).stdout == "no pins\n"


def test_pins_are_json_on_request(agent: ScriptedAgent) -> None:
    at = ("--json", "--address", agent.address)
    made = json.loads(kvtier("pin", "default/m", HASHES[0], "--ttl", "90", *at).stdout)
    assert (made["block_count"], made["pinned_bytes"]) == (1, 4096)
    [listed] = json.loads(kvtier("pins", *at).stdout)["pins"]
    assert listed["pin_id"] == made["pin_id"]
    assert json.loads(kvtier("unpin", made["pin_id"], *at).stdout) == {}
    again = kvtier("unpin", made["pin_id"], *at)
    assert again.returncode == ExitCode.FAILED
    assert again.stderr == "kvtier: no pin '0000000000000001'\n"


def test_a_quota_that_is_full_is_told(agent: ScriptedAgent) -> None:
    agent.pins.error = OverloadedError("3 blocks more take 12288 bytes of HOST")
    done = kvtier("pin", "default/m", *HASHES, "--ttl", "1h", "--address", agent.address)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: 3 blocks more take 12288 bytes of HOST\n"


def test_the_client_lists_pins_of_a_namespace(agent: ScriptedAgent) -> None:
    with AdminClient(agent.address) as client:
        made = client.create_pin("default/m", [bytes(32)], 60.0, reason="why")
        assert [each.reason for each in client.list_pins("default/m")] == ["why"]
        with pytest.raises(NotFoundError):
            client.list_pins("default/other")
        with pytest.raises(InvalidRequestError, match="hash_bytes is 0"):
            client.create_pin("default/m", [], 60.0)
        with pytest.raises(InvalidRequestError, match="namespace is empty"):
            client.create_pin("", [bytes(32)], 60.0)
        with pytest.raises(InvalidRequestError, match="ttl is -1"):
            client.create_pin("default/m", [bytes(32)], -1.0)
        client.delete_pin(made.pin_id)
        with pytest.raises(InvalidRequestError, match="pin_id is empty"):
            client.delete_pin("")


def test_eviction_says_what_was_left_and_takes_it_by_force(agent: ScriptedAgent) -> None:
    agent.upkeep.pinned = 2
    evict = ("evict", "default/m", "--yes", "--address", agent.address)
    assert kvtier(*evict).stdout == ("evicted 6 blocks of default/m; 2 blocks left, being pinned\n")
    assert json.loads(kvtier(*evict, "--json").stdout)["pinned_count"] == 2
    assert kvtier(*evict, "--force").stdout == "evicted 8 blocks of default/m\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["default/m", "xyz", "--ttl", "1h"], "HASH xyz"),
        (["default/m", HASHES[0], "ab" * 16, "--ttl", "1h"], "one length"),
        (["default/m", HASHES[0], "--ttl", "soon"], "--ttl: 'soon' is no duration"),
        (["default/m", HASHES[0], "--ttl", "0"], "--ttl: '0' is no duration"),
        (["default/m", HASHES[0]], "--ttl"),
    ],
)
def test_what_is_wrong_with_a_pin_is_named(
    agent: ScriptedAgent, arguments: list[str], word: str
) -> None:
    done = kvtier("pin", *arguments, "--address", agent.address)
    assert done.returncode == ExitCode.USAGE
    assert word in done.stderr
    assert not agent.pins.asked


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5h", 5400), ("30m", 1800), ("30 min", 1800), ("7d", 604_800)],
)
def test_times_are_written_with_units(text: str, seconds: float) -> None:
    assert seconds_of(text, "--ttl") == seconds

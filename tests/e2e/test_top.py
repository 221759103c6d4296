"""`kvtier top` on terminals of several sizes, with a real agent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier import Client
from kvtier.testing import AgentProcess
from tests.e2e.screen_process import ScreenProcess
from tests.faults.blocks import hashes_of, judge, spec_of, store
from tests.faults.waiting import wait_until
from tests.unit.cli.command import kvtier

_SETTINGS: dict[str, object] = {
    "tiers.host.capacity": "8MiB",
    "tiers.host.memory_reserve": 0,
    "tiers.disk.capacity": "64MiB",
    "tiers.disk.min_free": 0,
}
_SIZES = pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    disk = tmp_path_factory.mktemp("disk")
    with AgentProcess(settings={**_SETTINGS, "tiers.disk.paths": disk}) as agent:
        yield agent


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[Client]:
    with Client(agent.address, timeout_seconds=5, worker="the worker") as client:
        store(client.namespace(spec_of("large")), "a", 16)
        store(client.namespace(spec_of("small", 4096)), "a", 32)
        yield client


def top(agent: AgentProcess, *options: str, columns: int = 80, rows: int = 24) -> ScreenProcess:
    at = ("--address", agent.admin_address, "--interval", "0.1")
    return ScreenProcess("top", *at, *options, columns=columns, rows=rows)


def _rows_from(text: str, heading: str) -> list[str]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    return lines[start + 1 :]


@_SIZES
def test_everything_has_its_place(
    agent: AgentProcess, client: Client, columns: int, rows: int
) -> None:
    with top(agent, columns=columns, rows=rows) as screen:
        text = screen.until_there("HOST", "DISK", "HITS", "default/large@", "the worker")
        lines = text.splitlines()
        assert lines[0].startswith("kvtier ")
        assert lines[1] == agent.admin_address
        assert lines[2].startswith("the agent started")
        assert len(lines) == rows
        assert lines[-1].startswith("? help  q quit")
        assert ("EVICT/s" in text) == (columns == 200)
        host, disk = (next(x for x in lines if x.startswith(name)) for name in ("HOST", "DISK"))
        assert "active" in host
        assert "8.00 MiB" in host
        assert "64.0 MiB" in disk
        assert "█" in host
        assert all(len(line) <= columns for line in lines)


def test_it_follows_the_size_of_its_terminal(agent: AgentProcess, client: Client) -> None:
    with top(agent) as screen:
        screen.until_there("the worker")
        for columns, rows in ((200, 50), (60, 12), (80, 24)):
            screen.resize(columns, rows)
            screen.until(
                lambda text, columns=columns: (  # type: ignore[misc]
                    "? help" in text.splitlines()[-1] and ("EVICT/s" in text) == (columns == 200)
                )
            )


def test_hits_are_drawn_over_time(agent: AgentProcess, client: Client) -> None:
    namespace = client.namespace(spec_of("large"))
    with top(agent) as screen:
        screen.until_there("HITS")
        namespace.lookup(hashes_of("a", 16))
        text = screen.until(lambda text: "█" in _rows_from(text, "DISK")[0])
        assert "100 %" in _rows_from(text, "DISK")[0]
        namespace.lookup(hashes_of("nothing of this", 16))
        screen.until(lambda text: "▁" in _rows_from(text, "DISK")[0])


def test_keys_sort_open_help_and_quit(agent: AgentProcess, client: Client) -> None:
    with top(agent) as screen:
        text = screen.until_there("default/large@", "default/small@")
        assert _rows_from(text, "NAMESPACE")[0].startswith("default/large@")
        screen.press("s")
        screen.until_there("by blocks")
        screen.until(lambda text: _rows_from(text, "NAMESPACE")[0].startswith("default/small@"))
        screen.press("r")
        screen.until(lambda text: _rows_from(text, "NAMESPACE")[0].startswith("default/large@"))
        screen.press("\x1b[B\r")  # down to the other, and into it
        text = screen.until_there("default/small@", "4.00 KiB", "esc back")
        assert "default/large@" not in text
        screen.until(lambda text: "HITS" in text and "DISK" in text)  # its own counters
        screen.press("\x1b")
        screen.until_there("default/large@")
        screen.press("?")
        screen.until_there("page up", "Any key goes back")
        screen.press(" \t")
        screen.until_there("tab namespaces", "by leased")
        screen.press("q")
        assert screen.end() == 0
        assert screen.is_restored


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        (signal.SIGQUIT, 128 + signal.SIGQUIT),
        (signal.SIGINT, 0),
    ],
)
def test_the_terminal_is_restored_whatever_ends_it(
    agent: AgentProcess, client: Client, number: signal.Signals, status: int
) -> None:
    with top(agent) as screen:
        screen.until_there("the worker")
        assert screen.is_drawing
        assert not screen.is_restored
        screen.process.send_signal(number)
        assert screen.end() == status
        assert screen.is_restored


def test_an_error_ends_it_on_a_terminal_that_shows_it() -> None:
    with ScreenProcess("top", "--address", "carrier-pigeon:1") as screen:
        assert screen.end() == 2
        assert screen.is_restored
        assert "carrier-pigeon:1" in screen.text


def test_it_can_be_suspended(agent: AgentProcess, client: Client) -> None:
    with top(agent) as screen:
        screen.until_there("the worker")
        screen.press("\x1a")
        os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED)
        assert screen.is_restored
        screen.process.send_signal(signal.SIGCONT)
        wait_until(lambda: screen.is_drawing, 10)
        screen.until_there("the worker")


def test_an_agent_that_is_gone_is_the_first_thing_to_see(tmp_path: Path) -> None:
    with AgentProcess(settings=_SETTINGS) as agent, top(agent) as screen:
        screen.until_there("the agent started")
        agent.kill()
        text = screen.until_there("no agent at", "what is below it said at")
        assert "no agent at" in text.splitlines()[2]
        agent.start()
        screen.until(lambda text: "no agent" not in text and "the agent started" in text)
        agent.pause()
        text = screen.until_there("has not answered for")
        assert "has not answered" in text.splitlines()[2]
        agent.resume()
        screen.until(lambda text: "has not answered" not in text)
        agent.pause()
        screen.until_there("has not answered for")
        screen.press("q")
        assert screen.end() == 0
        assert screen.is_restored
        agent.resume()


def test_without_a_terminal_it_says_what_to_use(agent: AgentProcess) -> None:
    done = kvtier("top", "--address", agent.admin_address)
    assert done.returncode == 2
    assert "--once" in done.stderr
    assert done.stdout == ""


def test_once_it_prints_all_of_it(agent: AgentProcess, client: Client) -> None:
    at = ("--address", agent.admin_address, "--interval", "0.1")
    done = kvtier("top", "--once", *at)
    assert done.returncode == 0
    for word in ("HOST", "DISK", "HITS", "default/large@", "default/small@", "the worker"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    told = json.loads(kvtier("top", "--json", *at).stdout)
    assert {each["tier"] for each in told["stats"]["tiers"]} == {"TIER_HOST", "TIER_DISK"}
    assert set(told["rates"]) == {"TIER_HOST", "TIER_DISK"}
    assert [each["weight"] for each in told["troubles"]] == ["note"]
    assert len(told["namespaces"]) == 2
    assert judge(client.namespace(spec_of("large")), hashes_of("a", 16)).right == 16


def test_once_without_an_agent_is_an_error(tmp_path: Path) -> None:
    done = kvtier("top", "--once", "--address", f"unix:{tmp_path}/admin.sock")
    assert done.returncode == 3
    assert "no agent" in done.stderr

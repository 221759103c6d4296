"""`kvtier demo --nodes 2`, with a server of its own and with one that is there already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvtier.testing.redis_servers import RedisServer, free_port
from tests.e2e.demo_command import Demo, interrupt, rows_of
from tests.faults.repetitions import in_full

_NODES = ("--nodes", "2")
_LAST_LINE = "All 96 generated tokens are those of a run without kvtier."
_PASSWORD = "not-to-be-seen"


@pytest.fixture
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """In a directory with a short path: sockets lie below it."""
    return Demo(tmp_path_factory.mktemp("d"))


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """With something in it that is not the demo's."""
    with RedisServer(password=_PASSWORD) as running:
        running.call("SET", "theirs", "1")
        yield running


def _url(server: RedisServer) -> str:
    return f"redis://:{_PASSWORD}@{server.address}"


def test_nodes_share_a_prefix_and_go_on_when_their_server_is_gone(demo: Demo) -> None:
    done = demo.run(*_NODES, "--tokens", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows["runs on"] == ["node 1", "node 2", "node 2", "node 1"]
    assert rows["same tokens"] == ["yes", "yes", "yes", "yes"]
    assert rows["hits in CLUSTER, blocks"] == ["0", "4", "0", "0"]
    assert int(rows["hits in HOST, blocks"][2]) >= 4
    assert rows["hits in DISK, blocks"] == ["0", "0", "0", "4"]
    lines = [line.strip() for line in done.stdout.splitlines()]
    for node in ("node 1", "node 2"):
        assert any(line.startswith(f"{node}: CLUSTER is UNAVAILABLE (") for line in lines)
    assert "the agent of node 1 has been stopped and started again: 5 blocks on DISK" in lines
    assert "CLUSTER: 0 blocks stored, 4 loaded; UNAVAILABLE" in lines
    assert lines[-1] == _LAST_LINE
    assert not demo.remains()


@pytest.mark.cluster
@in_full
def test_a_server_that_is_there_already_is_left_as_it_was(demo: Demo, server: RedisServer) -> None:
    done = demo.run(*_NODES, "--tokens", "300", "--url", _url(server))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(done.stdout)["hits in CLUSTER, blocks"][:2] == ["0", "4"]
    assert f" at redis://:***@{server.address}" in done.stdout
    assert _PASSWORD not in done.stdout + done.stderr
    assert "killed" not in done.stdout
    assert done.stdout.splitlines()[-1] == _LAST_LINE
    assert server.calls_of("hset") > 0
    assert server.call("KEYS", "*") == [b"theirs"]
    assert not demo.remains()


def test_an_interrupt_leaves_nothing_behind(demo: Demo) -> None:
    status, output = demo.disturb("worker 1", interrupt, *_NODES, "--tokens", "64")
    assert status == 130
    assert output.splitlines()[-1].startswith("kvtier demo was interrupted")
    assert "Traceback" not in output
    assert not demo.remains()


@in_full
def test_an_interrupt_leaves_nothing_on_the_server(demo: Demo, server: RedisServer) -> None:
    options = (*_NODES, "--tokens", "64", "--url", _url(server))
    status, output = demo.disturb("worker 2", interrupt, *options)
    assert status == 130
    assert output.splitlines()[-1].startswith("kvtier demo was interrupted")
    assert "Traceback" not in output
    assert server.call("KEYS", "*") == [b"theirs"]
    assert not demo.remains()


@in_full
def test_a_server_that_dies_too_early_is_a_failure(demo: Demo, server: RedisServer) -> None:
    options = (*_NODES, "--tokens", "64", "--url", _url(server))
    status, output = demo.disturb("worker 1", lambda _: server.kill(), *options)
    assert status == 1
    assert output.splitlines()[-1].startswith("kvtier demo failed: ")
    assert "Traceback" not in output
    assert not demo.remains()


def test_a_server_that_does_not_answer_is_named(demo: Demo) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    done = demo.run(*_NODES, "--url", url)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"kvtier demo failed: {url} does not answer: ")
    assert not demo.remains()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*_NODES, "--url", "http://x"), "kvtier: --url: write redis://HOST:PORT"),
        (("--url", "redis://x"), "kvtier: --url is for two nodes: add --nodes 2"),
    ],
)
def test_wrong_options_are_code_2_and_one_line(
    demo: Demo, options: tuple[str, ...], says: str
) -> None:
    done = demo.run(*options)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1

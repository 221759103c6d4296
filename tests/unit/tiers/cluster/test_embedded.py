"""Behaviour of `kvtier.tiers.cluster.embedded`."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import parse_url
from tests.faults.waiting import wait_until

MEMORY = 64 << 20

OWNER = """
import sys, threading, time
from pathlib import Path
from kvtier.tiers.cluster.embedded import EmbeddedValkey
servers = []
start = lambda: servers.append(EmbeddedValkey(Path(sys.argv[1]), 1 << 26))
starter = threading.Thread(target=start)
starter.start(); starter.join()
time.sleep(0.3)  # the thread that started it is gone, the server is not
assert servers[0].is_running
print(servers[0].pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "valkey"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_it_serves_on_a_private_socket_within_its_memory(directory: Path) -> None:
    with EmbeddedValkey(directory, MEMORY) as valkey:
        store = ClusterStore(ClusterSettings(parse_url(valkey.url)))
        report = store.check(time.monotonic() + 5)
        store.close()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(valkey.socket_path.stat().st_mode) == 0o700
    assert (report.kind, report.maxmemory_bytes, report.policies) == (
        "valkey",
        MEMORY,
        ("allkeys-lru",),
    )
    assert report.concerns == ()
    assert not is_running(valkey.pid)
    assert {each.name for each in directory.iterdir()} == {"valkey.log"}


def test_it_starts_again_in_the_same_directory(directory: Path) -> None:
    for _ in range(2):
        with EmbeddedValkey(directory, MEMORY) as valkey:
            os.kill(valkey.pid, signal.SIGKILL)
            wait_until(lambda each=valkey: not each.is_running, 5)  # type: ignore[misc]


def test_it_ends_when_its_owner_is_killed(directory: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    wait_until(lambda: not is_running(pid), 5)


def test_a_directory_that_others_may_enter_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="0700"):
        EmbeddedValkey(directory, MEMORY)


def test_a_server_that_does_not_start_says_why(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"did not start(.|\n)*maxmemory"):
        EmbeddedValkey(directory, -1)

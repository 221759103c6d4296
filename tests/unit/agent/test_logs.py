"""The agent's log: what repeats is limited, and no secret is in it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvtier import Client, NamespaceSpec
from kvtier.agent.log_limit import LogLimit
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess, ManualClock
from kvtier.testing.redis_servers import RedisServer
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until

_BLOCK_BYTES = 4096


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("kvtier.x", level, "", 0, message, args, None)


def notes(limit: LogLimit, count: int, message: str = "slot %d") -> list[str]:
    """Those of the messages that pass."""
    records = [record(message, number) for number in range(count)]
    return [getattr(each, "note", "") for each in records if limit.filter(each)]


def test_a_template_has_so_many_messages_in_a_time_and_the_next_one_says_what_is_missing() -> None:
    clock = ManualClock()
    limit = LogLimit(clock, burst=3, seconds=60.0)
    assert notes(limit, 10) == ["", "", " (more like this are left out for up to 60 s)"]
    assert notes(limit, 2, "another %d") == ["", ""]
    clock.advance(59.9)
    assert notes(limit, 1) == []
    clock.advance(0.2)
    assert notes(limit, 2) == [" (8 more like this were left out)", ""]
    clock.advance(61)
    assert notes(limit, 1) == [""]


def test_debug_is_not_limited_and_memory_is_bounded() -> None:
    limit = LogLimit(ManualClock(), burst=1)
    assert all(limit.filter(record("x", level=logging.DEBUG)) for _ in range(5))
    for number in range(5000):
        limit.filter(record(f"made with an f-string: {number}"))
    assert len(limit._windows) <= 1024


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_flood_is_short_in_both_formats(log_format: str) -> None:
    program = f"""
import logging
from kvtier.agent import logs
logs.configure("info", {log_format!r})
for number in range(1000):
    logging.getLogger("kvtier.x").warning("slot %d is damaged", number)
logging.getLogger("kvtier.x").info("after it")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stderr.splitlines()
    if log_format == "json":
        lines = [json.loads(line)["message"] for line in lines]
    assert len(lines) == 21
    assert lines[0].endswith("slot 0 is damaged")
    assert lines[19].endswith("slot 19 is damaged (more like this are left out for up to 60 s)")
    assert lines[20].endswith("after it")


def test_no_secret_is_in_the_log_at_its_most_talkative(tmp_path: Path) -> None:
    password, salt = "word-that-nobody-may-see", "salt-that-nobody-may-see"
    keys = [bytes([number] * 32).hex() for number in (0xA1, 0xB2)]
    for name, key in zip("ab", keys, strict=True):
        (tmp_path / name).write_text(f"{ord(name)} {key} current\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "password").write_text(password)
    (tmp_path / "password").chmod(0o600)
    hashes = hashes_of("s", 4)
    with RedisServer(password=password, maxmemory_bytes=64 << 20) as server:
        logged = ""
        for name in "ab":  # the second finds values that it has no key for
            directory = tmp_path / f"agent-{name}"
            directory.mkdir(mode=0o700)
            settings = {
                "log.level": "debug",
                "log.format": "json",
                "tiers.cluster.url": f"redis://127.0.0.1:{server.port}",
                "tiers.cluster.password_file": tmp_path / "password",
                "tiers.cluster.keys_file": tmp_path / name,
                "tiers.host.capacity": "16MiB",
            }
            with AgentProcess(directory, settings) as agent:
                use(agent, salt, hashes)
                if name == "b":
                    wait_until(lambda: "is refused" in agent.log, 10.0)
            logged += agent.log
    assert "another layout" in logged
    secrets = [password, salt, *keys]
    assert not [each for each in secrets if each.casefold() in logged.casefold()]
    assert all(json.loads(line)["level"] for line in logged.splitlines())


def use(agent: AgentProcess, salt: str, hashes: list[bytes]) -> None:
    """Two layouts that differ in a salt, blocks in the cluster, and a call that fails."""
    with (
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        for number in range(2):
            spec = NamespaceSpec(
                name="m", block_bytes=(_BLOCK_BYTES,), extra={"salt": f"{salt}-{number}"}
            )
            namespace = client.namespace(spec)
            blocks = np.full((len(hashes), _BLOCK_BYTES), os.getpid() % 251, np.uint8)
            namespace.lookup(hashes)
            namespace.load_into(hashes, blocks)
            namespace.store(hashes, blocks)
            admin.flush(Tier.CLUSTER)
        with pytest.raises(KvtierError):
            admin.evict_blocks("default/nobody")

"""What `kvtier doctor` finds out about a Redis or Valkey."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.doctor.cluster import cluster_findings
from kvtier.doctor.finding import Finding, Verdict
from kvtier.testing.redis_servers import RedisServer, free_port
from tests.unit.doctor.test_machine import config_of, told


def _of(url: str, **settings: object) -> list[Finding]:
    keys = {f"tiers__cluster__{key}": value for key, value in settings.items()}
    return list(cluster_findings(config_of(tiers__cluster__url=url, **keys), has_agent=False))


def test_a_cache_as_it_should_be() -> None:
    with RedisServer(maxmemory_bytes=64 << 20) as server:
        found = _of(server.url)
    assert told(found, Verdict.PROBLEM) == []
    # How soon it answers is this machine's to say.
    assert [line for line in told(found, Verdict.WARNING) if not line.endswith(": slow")] == []
    assert "allkeys-lru" in found[0].found


def test_a_server_that_is_no_cache_is_warned_of() -> None:
    options = {"appendonly": "yes"}
    with RedisServer(policy="noeviction", options=options) as server:
        lines = told(_of(server.url), Verdict.WARNING)
    for words in ("noeviction", "maxmemory is 0", "writes its data to disk"):
        assert any(words in line for line in lines), words


def test_a_full_server_takes_no_writes() -> None:
    with RedisServer(maxmemory_bytes=1 << 19, policy="noeviction") as server:
        [line] = told(_of(server.url), Verdict.PROBLEM)
    assert "takes no writes: out of memory" in line


def test_a_server_that_is_not_there() -> None:
    [line] = told(_of(f"redis://127.0.0.1:{free_port()}", timeout=0.5), Verdict.PROBLEM)
    assert "not reached: connection" in line


def test_a_server_that_hangs() -> None:
    with RedisServer(maxmemory_bytes=64 << 20) as server:
        server.pause()
        [line] = told(_of(server.url, timeout=0.2), Verdict.PROBLEM)
        server.resume()
    assert "not reached: timeout" in line


def test_a_wrong_password_is_not_repeated(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong-secret\n")
    with RedisServer(maxmemory_bytes=64 << 20, password="right-secret") as server:
        found = _of(server.url, password_file=secret)
    [line] = told(found, Verdict.PROBLEM)
    assert "authentication" in line
    assert "secret" not in line


def test_what_the_configuration_lacks_is_named() -> None:
    [line] = told(_of("redis://127.0.0.1", password_env="KVTIER_NOT_SET"), Verdict.PROBLEM)
    assert "tiers.cluster.password_env" in line


@pytest.mark.parametrize("has_agent", [True, False])
def test_without_a_cluster_there_is_nothing_to_look_at(has_agent: bool) -> None:
    found = list(cluster_findings(config_of(), has_agent=has_agent))
    assert [each.verdict for each in found] == [Verdict.SKIPPED]

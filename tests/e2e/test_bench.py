"""The benchmarks' figures: 0.8 of what they are to reach, because test machines are noisy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvtier.testing.redis_servers import RedisServer
from tests.e2e.limited_device import limited_device
from tests.faults.waiting import wait_until

SLACK = 0.8
#: What issues say of speed is meant for disks like this.
DEVICE_BYTES_PER_SECOND = 2_000_000_000
#: A neighbour on the machine makes figures worse, never better: one good run of these is enough.
RUNS = 6
#: A machine that those figures are meant for puts as many entries into a dictionary in this time.
_ENTRIES = 200_000
_ENTRIES_SECONDS = 0.08
_KEY_BYTES = 32


def machine_speed() -> float:
    """Of this machine's Python now: 1, or less where it is slower than figures are meant for."""
    keys = os.urandom(_ENTRIES * _KEY_BYTES)
    table: dict[bytes, tuple[int, bytes, int]] = {}
    start = time.perf_counter()
    for place in range(0, len(keys), _KEY_BYTES):
        key = keys[place : place + _KEY_BYTES]
        table[key] = place, key[:8], len(table)
    found = sum(len(table[keys[place : place + _KEY_BYTES]]) for place in range(0, len(keys), 64))
    assert found == 3 * _ENTRIES // 2
    return min(1.0, _ENTRIES_SECONDS / (time.perf_counter() - start))


def bench(*arguments: str) -> dict[str, Any]:
    """One run of `kvtier bench`."""
    command = [sys.executable, "-m", "kvtier", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def reach(figures: dict[str, float], *arguments: str) -> None:
    """In one of RUNS runs."""
    for _ in range(RUNS):
        measured = bench(*arguments)
        if all(measured[name] >= SLACK * figure for name, figure in figures.items()):
            return
    raise AssertionError(measured)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("block_bytes", "batch", "load_ratio", "store_ratio"),
    [("2MiB", 16, 0.70, 0.62), ("2MiB", 256, 0.85, 0.80), ("64KiB", 256, 0.45, 0.0)],
)
def test_copying_through_the_agent_is_near_a_plain_copy(
    block_bytes: str, batch: int, load_ratio: float, store_ratio: float
) -> None:
    options = ("--block-bytes", block_bytes, "--batch", str(batch), "--seconds", "1.5")
    reach({"load_ratio": load_ratio, "store_ratio": store_ratio}, "host", *options)


@pytest.mark.alone
def test_streams_read_a_good_part_of_a_bare_socket() -> None:
    reach({"read_ratio": 0.20, "write_ratio": 0.12}, "stream", "--seconds", "1.5")


@pytest.mark.alone
def test_lookups_cost_little_more_than_a_call_that_does_nothing() -> None:
    measured = bench("host", "--seconds", "0.5")
    null_call = measured["null_call_p50_us"]
    assert measured["lookup_16_p50_us"] <= 1.5 / SLACK * null_call, measured
    assert measured["lookup_8192_p50_us"] <= 10 / SLACK * null_call, measured


@pytest.mark.alone
def test_a_million_blocks_are_small_and_do_not_stop_the_loop() -> None:
    for _ in range(RUNS):
        speed = SLACK * machine_speed()
        measured = bench("metadata", "--seconds", "2")
        assert measured["blocks"] >= 1_000_000
        assert measured["bytes_per_block"] <= 600, measured
        if (
            measured["inserts_per_second"] >= speed * 50_000
            and measured["loop_lag_p999_ms"] <= 5 / speed
        ):
            return
    raise AssertionError((speed, measured))


@pytest.mark.alone
def test_disk_is_near_plain_direct_io_and_leaves_host_alone(tmp_path: Path) -> None:
    with limited_device(tmp_path, DEVICE_BYTES_PER_SECOND) as is_limited:
        # Where it may be faster than two processors can feed it, they are what is measured.
        store_ratio = 0.85 if is_limited else 0.6
        for _ in range(RUNS):
            speed = SLACK * machine_speed()
            measured = bench("disk", "--path", str(tmp_path), "--seconds", "1.5")
            assert measured["metadata_bytes_per_block"] <= 300 / SLACK, measured
            assert list(tmp_path.iterdir()) == []
            if (
                measured["store_ratio"] >= SLACK * store_ratio
                and measured["load_ratio"] >= SLACK * 0.85
                and measured["recovery_slots_per_second"] >= speed * 200_000
                and measured["cpu_seconds_per_gb"] <= 0.6 / speed
                # Of two processors: what waits for one is in it too, and differs from run to run.
                and measured["host_hit_p99_ratio_under_disk_load"] <= 10
            ):
                return
    raise AssertionError((is_limited, speed, measured))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_that_is_stopped_leaves_nothing_on_the_disk(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "kvtier", "bench", "disk", "--path", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob("*/blocks/slab-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_measured_in_is_an_error(tmp_path: Path) -> None:
    for path, options, message in (
        (tmp_path / "missing", (), "does not exist"),
        (tmp_path, ("--block-bytes", "64MiB", "--batch", "8192"), "MiB are needed"),
    ):
        command = [sys.executable, "-m", "kvtier", "bench", "disk", "--path", str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.alone
def test_blocks_to_and_from_a_server_are_near_a_bare_socket() -> None:
    for _ in range(RUNS):
        measured = bench("cluster", "--seconds", "1.5")
        if (
            measured["get_ratio"] >= SLACK * 0.70
            and measured["set_ratio"] >= SLACK * 0.60
            and measured["get_gbps"] >= SLACK * measured["redispy_get_gbps"]
            and measured["set_gbps"] >= SLACK * measured["redispy_set_gbps"]
            and measured["exists_512_ratio"] <= 20 / SLACK
        ):
            return
    raise AssertionError(measured)


def test_a_measured_server_keeps_what_it_has_and_nothing_else() -> None:
    with RedisServer(password="secret", maxmemory_bytes=512 << 20, policy="noeviction") as server:
        server.call("SET", "kvtier:1", "of somebody else")
        where = server.url.replace("://", "://:secret@")
        options = ("--url", where, "--block-bytes", "64KiB", "--batch", "4", "--seconds", "0.1")
        measured = bench("cluster", *options)
        assert measured["url"] == server.url.replace("://", "://:***@")
        assert server.call("KEYS", "*") == [b"kvtier:1"]


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_that_is_stopped_leaves_nothing_on_the_server(
    number: signal.Signals,
) -> None:
    with RedisServer(maxmemory_bytes=1 << 30) as server:
        command = [sys.executable, "-m", "kvtier", "bench", "cluster", "--url", server.url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: server.call("DBSIZE") > 0, 20)
            process.send_signal(number)
            assert process.wait(20) == 128 + number
        finally:
            process.kill()
            process.wait()
        assert server.call("DBSIZE") == 0


def test_a_server_without_room_is_not_measured() -> None:
    with RedisServer(maxmemory_bytes=64 << 20) as server:
        command = [sys.executable, "-m", "kvtier", "bench", "cluster", "--url", server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert "maxmemory" in done.stderr
        assert server.call("DBSIZE") == 0

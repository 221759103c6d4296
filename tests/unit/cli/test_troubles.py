"""What an agent's figures say is wrong, and in which order."""

from __future__ import annotations

import os

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.cli.troubles import Weight, all_troubles, of_namespaces, of_sessions, of_stats
from kvtier.testing.worker_process import Pipe, WorkerProcess
from kvtier.v1 import block_pb2
from kvtier.v1.block_pb2 import NamespaceSpec
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats, TierStats

_GOOD = {"state": TierStats.ACTIVE, "capacity_bytes": 100, "allocated_bytes": 50}
_DAY = Duration(seconds=86400)


def host(**fields: object) -> TierStats:
    return TierStats(tier=block_pb2.TIER_HOST, **{**_GOOD, **fields})  # type: ignore[arg-type]


def disk(**fields: object) -> TierStats:
    return TierStats(tier=block_pb2.TIER_DISK, **{**_GOOD, **fields})  # type: ignore[arg-type]


def gpu(**fields: object) -> TierStats:
    device = {"device": "cuda:1 (a GPU)"}
    return TierStats(tier=block_pb2.TIER_GPU, **{**_GOOD, **device, **fields})  # type: ignore[arg-type]


def with_certificate(seconds: int) -> Stats:
    """One that expires in so many seconds."""
    now, then = Timestamp(seconds=10**9), Timestamp(seconds=10**9 + seconds)
    return Stats(uptime=_DAY, sample_time=now, certificate_expire_time=then)


def texts(stats: Stats) -> list[str]:
    return [each.text for each in of_stats(stats)]


def test_an_agent_that_is_well_has_none() -> None:
    busy = host(block_count=1000, stored_count=90_000, crowded_out_count=80_000, refused_count=10)
    tiers = [busy, disk(read_seconds_per_mib=0.001, unwritten_count=3, demoted_count=1000)]
    assert texts(Stats(uptime=_DAY, tiers=tiers)) == []
    assert texts(with_certificate(8 * 86400)) == []


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        (Stats(uptime=_DAY, is_draining=True), "drained"),
        (Stats(uptime=_DAY, rejected_count=2), "2 calls rejected"),
        (Stats(uptime=_DAY, listen_errors=["listen.tls_key: gone"]), "gone; what was read before"),
        (with_certificate(0), "listen.tls_cert has expired"),
        (with_certificate(90_000), "listen.tls_cert expires in 1 d 1 h"),
        (Stats(uptime=Duration(seconds=30), tiers=[host()]), "30 s ago with an empty HOST; there"),
        (Stats(uptime=Duration(seconds=30), tiers=[disk()]), "what DISK had is still there"),
        (Stats(uptime=_DAY, tiers=[host(allocated_bytes=200)]), "HOST is shrinking: 100 B"),
        (Stats(uptime=_DAY, tiers=[host(quarantined_bytes=1)]), "in quarantine"),
        (Stats(uptime=_DAY, tiers=[disk(corrupt_count=1)]), "DISK: 1 block damaged"),
        (Stats(uptime=_DAY, tiers=[disk(error_count=2)]), "DISK: 2 calls failed"),
        (Stats(uptime=_DAY, tiers=[host(refused_count=6, stored_count=94)]), "refused 6 of 100"),
        (Stats(uptime=_DAY, tiers=[disk(unwritten_count=6, demoted_count=94)]), "left HOST before"),
        (Stats(uptime=_DAY, tiers=[disk(read_seconds_per_mib=0.2)]), "1 MiB takes 0.2 s"),
        (
            Stats(uptime=_DAY, tiers=[gpu(), gpu(state=TierStats.UNAVAILABLE, reason="no torch")]),
            "GPU cuda:1 (a GPU) is unavailable: no torch",
        ),
        (Stats(uptime=_DAY, tiers=[disk(distrusted_seconds=40)]), "for 40 s more"),
    ],
)
def test_each_trouble_has_its_words_and_its_advice(stats: Stats, words: str) -> None:
    [trouble] = of_stats(stats)
    assert words in trouble.text
    assert trouble.advice


def test_a_tier_is_small_when_blocks_do_not_stay() -> None:
    small = host(block_count=10, crowded_out_count=86400)  # 10 s
    [line] = texts(Stats(uptime=_DAY, tiers=[small]))
    assert "a block stays 10 s (86,400 evicted, room for 10)" in line
    copies = gpu(block_count=10, crowded_out_count=86400)  # HOST still has them
    assert texts(Stats(uptime=_DAY, tiers=[copies])) == []
    on_request = host(block_count=10, evicted_count=86400)
    assert texts(Stats(uptime=_DAY, tiers=[on_request])) == []


def test_the_worst_comes_first() -> None:
    recovering = disk(state=TierStats.RECOVERING, reason="its tables are still being read")
    slow = disk(read_seconds_per_mib=1.0)
    gone = TierStats(
        tier=block_pb2.TIER_CLUSTER, state=TierStats.UNAVAILABLE, reason="connection: refused"
    )
    found = of_stats(Stats(uptime=_DAY, tiers=[recovering, slow, gone]))
    assert [each.weight for each in found] == [Weight.PROBLEM, Weight.WARNING, Weight.NOTE]
    assert found[0].text == "CLUSTER is unavailable: connection: refused"


def test_a_server_that_takes_no_writes_is_not_to_be_started() -> None:
    full = TierStats(tier=block_pb2.TIER_CLUSTER, state=TierStats.DEGRADED, reason="out of memory")
    [trouble] = of_stats(Stats(uptime=_DAY, tiers=[full]))
    assert trouble.weight is Weight.PROBLEM
    assert "allkeys-lru" in trouble.advice


def test_a_session_in_quarantine_names_its_process() -> None:
    session = Session(worker="engine", pid=os.getpid(), quarantined_bytes=1 << 20)
    [trouble] = of_sessions([Session(worker="other"), session])
    assert trouble.text == f"engine (pid {os.getpid()}) has 1.00 MiB in quarantine"
    assert trouble.weight is Weight.WARNING


def _wait(pipe: Pipe) -> None:
    pipe.say()
    pipe.hear()


def test_a_process_that_is_stopped_is_worse() -> None:
    with WorkerProcess(_wait) as worker:
        worker.hear()
        worker.pause()
        [trouble] = of_sessions([Session(pid=worker.pid, quarantined_bytes=1)])
        assert trouble.weight is Weight.PROBLEM
        assert f"kill -CONT {worker.pid}" in trouble.text
        worker.resume()


def _info(dtype: str, seed: str, *differences: str) -> NamespaceInfo:
    spec = NamespaceSpec(tenant="a", name="m", dtype=dtype, extra={"hash_seed": seed})
    return NamespaceInfo(spec=spec, sibling_differences=differences)


def test_layouts_of_one_name_are_told_once_with_their_values() -> None:
    [trouble] = of_namespaces([_info("bf16", "x", "dtype"), _info("fp16", "x", "dtype")])
    assert trouble.text == "a/m has 2 layouts that share nothing: they differ in dtype (bf16, fp16)"
    field = "extra.hash_seed"
    [trouble] = of_namespaces([_info("", "x" * 40, field), _info("", "y" * 40, field)])
    assert trouble.text.endswith("differ in extra.hash_seed")
    assert "PYTHONHASHSEED" in trouble.advice


def test_a_rule_is_at_its_limit_when_nothing_more_goes_in() -> None:
    def info(occupied: int) -> NamespaceInfo:
        return NamespaceInfo(
            rule="a/*", limit_bytes=[0, 100, 0, 0], occupied_bytes=[0, occupied, 7, 0]
        )

    assert list(of_namespaces([info(80)])) == []
    [trouble] = of_namespaces([info(95), info(95)])
    assert "rule a/* is at its limit: 95 B of 100 B of HOST" in trouble.text


def test_all_together_are_sorted_too() -> None:
    found = all_troubles(
        Stats(uptime=Duration(seconds=1), tiers=[host(corrupt_count=1)]),
        [_info("bf16", "", "dtype"), _info("fp16", "", "dtype")],
        [],
    )
    assert [each.weight for each in found] == sorted(each.weight for each in found)
    assert "damaged" in found[0].text

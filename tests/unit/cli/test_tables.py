"""What the tables of `stats`, `namespaces` and `sessions` say."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType

from kvtier.cli import namespaces, sessions, tiers
from kvtier.cli.stats import overview
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats, TierStats


def printed(drawing: RenderableType) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(drawing)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_stats_show_a_column_for_each_tier() -> None:
    host = TierStats(
        tier=block_pb2.TIER_HOST,
        state=TierStats.ACTIVE,
        capacity_bytes=2**30,
        used_bytes=3 * 2**28,
        hit_count=5,
        miss_count=1,
        lookup_count=10,
        lookup_hit_count=9,
    )
    sample = Stats(epoch=0xAB, version="1.2", uptime=Duration(seconds=61), tiers=[host])
    sample.history.SetInParent()
    lines = printed(overview(sample))
    assert lines[0] == "kvtier 1.2, epoch 00000000000000ab, up 1 min 1 s"
    assert lines[-1] == "history: off"
    assert "HOST" in lines
    assert "state active" in lines
    assert "used 768 MiB" in lines
    assert "capacity 1.00 GiB" in lines
    assert "looked up 10" in lines
    assert "found 9" in lines
    assert "found rate 90.0 %" in lines
    assert "loaded 5" in lines
    assert "lost before load 1" in lines


def test_a_lower_tier_shows_what_goes_in_and_out() -> None:
    host = TierStats(tier=block_pb2.TIER_HOST, state=TierStats.ACTIVE)
    disk = TierStats(
        tier=block_pb2.TIER_DISK,
        state=TierStats.DEGRADED,
        reason="/mnt/a: 100 MiB are free, min_free is 1GiB",
        promoted_count=1,
        demoted_count=2,
        unwritten_count=3,
        pending_bytes=2**20,
        read_bytes=2**21,
        written_bytes=2**22,
        error_count=4,
    )
    lines = printed(overview(Stats(tiers=[host, disk])))
    assert lines[2] == "DISK is degraded: /mnt/a: 100 MiB are free, min_free is 1GiB"
    assert "HOST DISK" in lines
    assert "state active degraded" in lines
    start = lines.index("promoted - 1")
    assert lines[start : start + 7] == [
        *("promoted - 1", "demoted - 2", "left unwritten - 3", "to be written - 1.00 MiB"),
        *("read - 2.00 MiB", "written - 4.00 MiB", "errors - 4"),
    ]


def test_one_of_a_kind_is_not_a_plural() -> None:
    lines = printed(overview(Stats(namespace_count=1, session_count=2, lease_count=1)))
    assert lines[1] == "1 namespace, 2 sessions, 1 lease, 0 calls rejected"


def test_stats_without_tiers_still_have_a_heading() -> None:
    assert printed(overview(Stats(version="1.2")))[0].startswith("kvtier 1.2")


def test_namespaces_have_the_digest_that_commands_take() -> None:
    info = NamespaceInfo(
        spec=block_pb2.NamespaceSpec(
            tenant="a", name="b", model="m", dtype="bf16", block_tokens=16, block_bytes=[2**21]
        ),
        layout_digest=bytes.fromhex("0123abcd00"),
        block_count=[0, 12, 3, 0],
        used_bytes=[0, 2**21, 2**21, 0],
    )
    assert namespaces.row(info) == (
        *("a/b@0123abcd", "16", "2.00 MiB"),
        *("15", "4.00 MiB", "0 B", "0"),
    )


def test_layouts_of_one_name_are_compared_field_by_field() -> None:
    one = NamespaceInfo(
        spec=block_pb2.NamespaceSpec(
            tenant="a", name="b", dtype="bf16", block_bytes=[2**21], extra={"seed": "1"}
        ),
        layout_digest=bytes.fromhex("0123abcd00"),
    )
    other = NamespaceInfo(
        spec=block_pb2.NamespaceSpec(tenant="a", name="b", dtype="fp8", block_bytes=[2**21]),
        layout_digest=bytes.fromhex("4567abcd00"),
    )
    stranger = NamespaceInfo(spec=block_pb2.NamespaceSpec(tenant="a", name="c"))
    assert list(namespaces.differences([one, stranger, other])) == [
        "a/b has 2 layouts, which share nothing; they differ in:",
        "  dtype: bf16 (@0123abcd), fp8 (@4567abcd)",
        "  extra.seed: 1 (@0123abcd), - (@4567abcd)",
    ]
    assert list(namespaces.differences([one, stranger])) == []
    assert namespaces.layout(one) == {
        "dtype": "bf16",
        "block_bytes": "2.00 MiB",
        "extra.seed": "1",
    }


def test_rules_are_shown_once_with_what_their_namespaces_have() -> None:
    info = NamespaceInfo(
        rule="a/*",
        ttl=Duration(seconds=3600),
        limit_bytes=[0, 2**30, 0, 0],
        guaranteed_bytes=[0, 2**20, 0, 0],
        occupied_bytes=[0, 2**21, 2**22, 0],
    )
    assert list(namespaces.rules([info, info, NamespaceInfo()])) == [
        "rule a/*: HOST 2.00 MiB of at most 1.00 GiB, 1.00 MiB guaranteed; DISK 4.00 MiB; "
        "blocks live 1 h 0 min"
    ]


def test_sessions_have_an_age() -> None:
    session = Session(
        session_id=255,
        namespace="a/b@0123abcd",
        pid=12,
        uid=1000,
        lease_count=2,
        leased_bytes=2**20,
        create_time=Timestamp(seconds=1_000_000),
    )
    now = datetime.fromtimestamp(1_000_185, UTC)
    assert sessions.row(session, now) == (
        *("ff", "a/b@0123abcd", "-", "12", "1000"),
        *("3 min 5 s", "2", "1.00 MiB"),
    )
    session.pid, session.uid = 0, 2**32 - 1  # without shared memory: who it is is not known
    assert sessions.row(session, now)[3:5] == ("-", "-")


def test_a_device_is_named_wherever_its_tier_is() -> None:
    gpu = TierStats(
        tier=block_pb2.TIER_GPU, state=TierStats.ACTIVE, device="cpu (emulated)", hit_count=7
    )
    lines = printed(overview(Stats(tiers=[gpu, TierStats(tier=block_pb2.TIER_HOST)])))
    assert "GPU cpu (emulated) HOST" in lines
    assert "prefetched - 0" in lines
    assert "loaded 7 0" in lines
    assert tiers.row(gpu)[0] == "GPU cpu (emulated)"
    info = NamespaceInfo(
        spec=block_pb2.NamespaceSpec(tenant="a", name="b"),
        layout_digest=bytes.fromhex("0123abcd00"),
        copies=[
            NamespaceInfo.Copies(device="cpu (emulated)", block_count=3, used_bytes=2**20),
            NamespaceInfo.Copies(device="cuda:1 (none of it)"),
        ],
    )
    assert list(namespaces.copies([info])) == [
        "a/b@0123abcd: 3 blocks, 1.00 MiB, on GPU cpu (emulated)"
    ]

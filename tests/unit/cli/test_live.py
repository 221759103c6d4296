"""The parts of `kvtier top`, without a terminal."""

from __future__ import annotations

import io
import os

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from kvtier.cli.live import tables
from kvtier.cli.live.choices import Choices
from kvtier.cli.live.feed import Sample
from kvtier.cli.live.keyboard import read_keys
from kvtier.cli.live.rates import Rates, sparkline
from kvtier.cli.live.screen import HELP, View, draw
from kvtier.cli.live.tables import ASCII, BLOCKS, bar
from kvtier.v1 import block_pb2
from kvtier.v1.block_pb2 import NamespaceSpec
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats, TierStats

HOST, DISK = block_pb2.TIER_HOST, block_pb2.TIER_DISK


def stats(seconds: int, host: tuple[int, int], disk: tuple[int, int], epoch: int = 1) -> Stats:
    """Blocks looked up and found in each tier; DISK has read a MiB a second."""
    tiers = [
        TierStats(
            tier=tier,
            state=TierStats.ACTIVE,
            lookup_count=asked,
            lookup_hit_count=found,
            read_bytes=seconds << 20,
            promoted_count=2 * seconds,
        )
        for tier, (asked, found) in ((HOST, host), (DISK, disk))
    ]
    return Stats(epoch=epoch, sample_time=Timestamp(seconds=seconds), tiers=tiers)


def test_rates_are_what_happened_between_samples() -> None:
    rates = Rates()
    rates.add(stats(0, (0, 0), (0, 0)))
    assert rates.of(DISK).read_bytes == 0
    assert rates.hit_share() is None
    rates.add(stats(2, (100, 60), (40, 10)))
    assert rates.of(DISK).read_bytes == 1 << 20
    assert rates.of(DISK).promoted == 2
    assert rates.of(HOST).hit_share == 0.6
    assert rates.of(DISK).hit_share == 0.25
    assert rates.hit_share() == 0.7
    rates.add(stats(4, (100, 60), (40, 10)))
    assert rates.hits(10) == [0.7, None]
    assert rates.hits(1) == [None]
    assert rates.hits(10, DISK) == [0.25, None]


def test_what_an_earlier_agent_said_does_not_count() -> None:
    rates = Rates()
    rates.add(stats(0, (500, 500), (0, 0)))
    rates.add(stats(1, (10, 10), (0, 0), epoch=2))
    assert not rates
    assert rates.hits(10) == []


def gpu(index: int, loaded: int) -> TierStats:
    """One of several devices, where a block has 1000 bytes."""
    return TierStats(
        tier=block_pb2.TIER_GPU,
        device=f"cuda:{index} (a device with a long name)",
        state=TierStats.ACTIVE,
        hit_count=loaded,
        block_count=1,
        used_bytes=1000,
    )


def test_each_device_has_rates_and_a_row_of_its_own() -> None:
    rates, last = Rates(), Stats()
    for second in (0, 1):
        last = stats(second, (10 * second, 5 * second), (0, 0))
        last.tiers.extend([gpu(0, 2 * second), gpu(1, 7 * second)])
        rates.add(last)
    assert [rates.of(each.tier, each.device).read_bytes for each in last.tiers[2:]] == [2000, 7000]
    assert rates.hit_share() == 0.5
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.tiers(last, rates, 80, ASCII))
    console.print(*tables.charts(rates, last, 80, ASCII, is_tall=True))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "GPU cuda:0 (a dev" in text
    assert "GPU cuda:1 (a dev" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("GPU") == 2  # lookups do not ask there: no chart


def test_counters_that_went_with_their_namespace_are_no_negative_rates() -> None:
    rates = Rates()
    rates.add(stats(0, (500, 400), (100, 0)))
    rates.add(stats(1, (10, 10), (0, 0)))
    assert rates.of(HOST).hit_share is None
    assert rates.hits(1) == [None]


def test_sparklines_end_at_the_right() -> None:
    assert sparkline([0.0, None, 1.0], 5, BLOCKS.levels) == "  ▁ █"
    assert len(sparkline([1.0] * 100, 7, BLOCKS.levels)) == 7


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, "...."), (0.001, "#..."), (0.5, "##.."), (0.999, "###."), (1, "####"), (1.5, "####")],
)
def test_bars_show_nothing_and_all_only_for_that(share: float, drawn: str) -> None:
    assert bar(share, 4, ASCII) == drawn


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b", ["escape"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~s\r", ["page up", "s", "enter"]),
        (b"AB", ["A", "B"]),
        (b"\x1b[99Z", [""]),
        (b"gG\t\x1a", ["home", "end", "tab", "suspend"]),
    ],
)
def test_keys_have_names(typed: bytes, keys: list[str]) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, typed)
        assert read_keys(reader) == keys
    finally:
        os.close(writer)
    with pytest.raises(EOFError):
        read_keys(reader)
    os.close(reader)


def info(name: str, used: int, blocks: int = 1) -> NamespaceInfo:
    return NamespaceInfo(
        spec=NamespaceSpec(tenant="a", name=name, block_bytes=[4096]),
        layout_digest=name.encode() * 4,
        used_bytes=[0, used, 0, 0],
        block_count=[0, blocks, 0, 0],
    )


def test_a_selection_stays_with_its_row() -> None:
    choices = Choices()
    pane = choices.namespaces
    pane.show([info("x", 1), info("y", 3), info("z", 2)])
    assert [row.spec.name for row in pane.rows] == ["y", "z", "x"]
    choices.press("down")
    assert pane.rows[pane.index].spec.name == "z"
    choices.press("r")
    assert [row.spec.name for row in pane.rows] == ["x", "z", "y"]
    assert pane.rows[pane.index].spec.name == "z"
    choices.press("end")
    choices.press("down")
    assert pane.rows[pane.index].spec.name == "y"
    pane.show([info("x", 1)])
    assert pane.index == 0  # it is gone


def test_enter_opens_and_escape_goes_back() -> None:
    choices = Choices()

    def opened_by(key: str) -> str:
        choices.press(key)
        return choices.opened

    assert opened_by("enter") == ""  # there is nothing
    choices.namespaces.show([info("x", 1)])
    assert opened_by("enter") == "a/x@78787878"
    assert opened_by("escape") == ""
    choices.sessions.show([Session(session_id=1, namespace="a/y@00112233")])
    assert opened_by("tab") == ""
    assert opened_by("enter") == "a/y@00112233"
    choices.press("q")
    assert choices.is_over


def shown(view: View, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(draw(view, width, height), height=height)
    return out.getvalue().rstrip("\n").split("\n")


def view_of(troubled: bool = False) -> View:
    view = View("unix:/run/kvtier/admin.sock")
    tiers = [
        TierStats(
            tier=tier,
            state=TierStats.DEGRADED if troubled and tier == DISK else TierStats.ACTIVE,
            reason="/mnt/nvme0/kvtier: 100 MiB would be left on the device" if troubled else "",
            capacity_bytes=1 << 40,
            used_bytes=1 << 39,
        )
        for tier in (HOST, DISK, block_pb2.TIER_CLUSTER)
    ]
    namespaces = [info(f"model-{number}", number << 30) for number in range(200)]
    sessions = [
        Session(session_id=number, namespace="a/model", worker=f"vllm {number}", pid=number)
        for number in range(100)
    ]
    day = Duration(seconds=86400)
    view.add(Sample(Stats(version="1", uptime=day, tiers=tiers), namespaces, sessions))
    return view


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (60, 12), (40, 8), (300, 100)])
@pytest.mark.parametrize("troubled", [False, True])
def test_it_fits_into_any_terminal(width: int, height: int, troubled: bool) -> None:
    lines = shown(view_of(troubled), width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert lines[-1].startswith("? help  q quit")
    if troubled:
        assert lines[2].startswith("! DISK is degraded: /mnt/nvme0"[: width - 1])


def test_the_selected_row_is_always_there() -> None:
    view = view_of()
    for key in ("end", "page up", "home", "down"):
        view.choices.press(key)
        shown(view, 80, 24)
        pane = view.choices.namespaces
        lines = shown(view, 80, 24)
        assert any(pane.rows[pane.index].spec.name in line for line in lines), key


def test_help_fits_into_a_small_terminal() -> None:
    lines = HELP.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_before_the_first_sample_the_complaint_is_all() -> None:
    view = View("unix:/nowhere/admin.sock", complaint="no agent at unix:/nowhere/admin.sock")
    lines = shown(view, 80, 24)
    assert lines[2].startswith("! no agent at unix:/nowhere")
    assert lines[-1].startswith("? help")


@pytest.mark.parametrize(("height", "left"), [(24, 4), (12, 5), (50, 0)])
def test_troubles_that_do_not_fit_are_counted(height: int, left: int) -> None:
    view = view_of()
    assert view.sample is not None
    disk = view.sample.stats.tiers[1]
    disk.state, disk.reason = TierStats.DEGRADED, "a long story of what happened to it " * 3
    disk.corrupt_count = disk.quarantined_bytes = disk.unwritten_count = disk.refused_count = 1
    disk.read_seconds_per_mib = 1.0
    lines = shown(view, 80, height)
    assert len(view.troubles) == 6
    more = [line.split()[0] for line in lines if "more: kvtier doctor" in line]
    assert more == ([str(left)] if left else [])
    assert lines[2].startswith("! DISK is degraded: a long story")


def test_what_workers_say_moves_no_cursor() -> None:
    evil = "\x1b[2J\x07evil\r"
    spec = NamespaceSpec(tenant="a", name="m", model=evil, dtype=evil, engine=evil)
    found = NamespaceInfo(spec=spec, layout_digest=bytes(32), sibling_differences=[evil])
    session = Session(session_id=1, worker=evil, namespace="a/m", pid=1, quarantined_bytes=1)
    view = View("unix:/run/kvtier/admin.sock")
    view.add(Sample(Stats(uptime=Duration(seconds=86400)), [found], [session]))
    for key in ("", "enter"):
        view.choices.press(key)
        text = "\n".join(shown(view, 200, 50))
        assert "evil" in text
        assert "\x1b[2J" not in text
        assert "\x07" not in text

"""Behaviour of `kvtier.tiers.disk.volume`: one agent, one capacity, and what a start finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from kvtier.errors import ConfigError
from kvtier.testing import FaultyIO
from kvtier.tiers.disk.slab import Slab, slab_bytes
from kvtier.tiers.disk.volume import Volume, slots_within

PAGE = 4096
MIB = 1 << 20


@contextmanager
def volume_at(path: Path, capacity_bytes: int = 4 * MIB, min_free: int = 0) -> Iterator[Volume]:
    volume = Volume(FaultyIO(Random(0)), path, capacity_bytes, min_free_bytes=min_free)
    try:
        yield volume
    finally:
        volume.close()


def make_slab(volume: Volume, slots: int = 16, written_at: int = 0) -> Path:
    """The path of its table."""
    slab = Slab(volume, volume.new_header(bytes(32), slots, PAGE), 1, 0)
    slab.populate(slots)
    slab.close()
    if written_at:
        os.utime(slab.table_path, ns=(written_at, written_at))
    return slab.table_path


def kernel_bytes(path: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in (path, *path.rglob("*")))


def found(volume: Volume) -> list[str]:
    return [f"slab-{header.slab_id.hex()}" for header in volume.headers()]


def test_one_agent_has_a_directory(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v"):
        with pytest.raises(ConfigError, match="another agent uses it"):
            Volume(FaultyIO(Random(0)), tmp_path / "v", MIB)
        assert (tmp_path / "v").stat().st_mode & 0o777 == 0o700
    with volume_at(tmp_path / "v"):
        pass


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        Volume(FaultyIO(Random(0)), tmp_path / "file", MIB)


def test_slabs_are_found_the_one_written_to_last_first_and_count(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v") as volume:
        tables = [make_slab(volume, written_at=at * 10**9) for at in (200, 300, 100)]
        counted = volume.allocated_bytes
    with volume_at(tmp_path / "v") as volume:
        assert volume.allocated_bytes == volume.reserve_bytes
        order = [tables[1].stem, tables[0].stem, tables[2].stem]
        assert found(volume) == order
        assert volume.allocated_bytes == counted
        assert kernel_bytes(volume.path) <= counted <= volume.capacity_bytes


def test_what_does_not_fit_any_more_is_deleted_the_oldest_first(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v") as volume:
        tables = [make_slab(volume, 64, written_at=at * 10**9) for at in (200, 300, 100)]
        one = slab_bytes(volume.new_header(bytes(32), 64, PAGE))
    capacity = 2 * one * 16 // 15 + PAGE
    with volume_at(tmp_path / "v", capacity) as volume:
        assert found(volume) == [tables[1].stem, tables[0].stem]
        assert not tables[2].exists()
        assert not tables[2].with_suffix(".data").exists()
        assert kernel_bytes(volume.path) <= volume.allocated_bytes <= capacity


@pytest.mark.parametrize(
    "harm",
    [
        lambda table: table.write_bytes(table.read_bytes()[:4096]),
        lambda table: table.write_bytes(b"x" * 8192),
        lambda table: table.write_bytes(b""),
        lambda table: table.with_suffix(".data").unlink(),
        lambda table: os.truncate(table.with_suffix(".data"), PAGE),
        lambda table: (
            table.rename(table.with_name("slab-" + "0" * 32 + ".table")),
            table.with_suffix(".data").rename(table.with_name("slab-" + "0" * 32 + ".data")),
        ),
    ],
)
def test_what_is_not_whole_is_set_aside_and_counts(tmp_path: Path, harm: object) -> None:
    assert callable(harm)
    with volume_at(tmp_path / "v") as volume:
        good, bad = make_slab(volume), make_slab(volume)
    harm(bad)
    with volume_at(tmp_path / "v") as volume:
        assert found(volume) == [good.stem]
        assert [each.name for each in volume.path.glob("slab-*.table")] == [good.name]
        assert list((volume.path / "aside").iterdir())
        assert kernel_bytes(volume.path) <= volume.allocated_bytes


def test_another_version_is_set_aside_untouched(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v") as volume:
        table = make_slab(volume)
    data = bytearray(table.read_bytes())
    data[8] = 2
    table.write_bytes(data)
    with volume_at(tmp_path / "v") as volume:
        assert found(volume) == []
        assert (volume.path / "aside" / table.name).read_bytes() == data


def test_leftovers_are_deleted(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v") as volume:
        table = make_slab(volume)
    (tmp_path / "v" / "namespaces.tmp").write_text("half")
    (tmp_path / "v" / ("slab-" + "1" * 32 + ".data")).write_bytes(bytes(PAGE))
    with volume_at(tmp_path / "v") as volume:
        assert found(volume) == [table.stem]
        assert not list(volume.path.glob("*.tmp"))
        assert len(list(volume.path.glob("slab-*"))) == 2


def test_what_was_set_aside_makes_way_and_the_oldest_goes_first(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v", 2 * MIB) as volume:
        aside = volume.path / "aside"
        for number in (2, 1, 3):
            (aside / f"old-{number}").write_bytes(bytes(256 << 10))
            os.utime(aside / f"old-{number}", ns=(number, number))
    with volume_at(tmp_path / "v", 2 * MIB) as volume:
        assert volume.room_bytes == 2 * MIB - volume.reserve_bytes
        slots = slots_within(volume.room_bytes - (300 << 10), PAGE)
        make_slab(volume, slots)
        assert sorted(each.name for each in aside.iterdir()) == ["old-3"]
        assert kernel_bytes(volume.path) <= volume.allocated_bytes <= volume.capacity_bytes


def test_what_was_set_aside_never_makes_the_books_exceed_the_capacity(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v", MIB) as volume:
        (volume.path / "aside" / "old").write_bytes(bytes(256 << 10))
    with volume_at(tmp_path / "v", MIB) as volume:
        volume.new_header(bytes(32), slots_within(volume.room_bytes, PAGE), PAGE)
        assert volume.allocated_bytes <= volume.capacity_bytes


@pytest.mark.parametrize("room", [0, 4096, 73728, 77823, 78080, 100000, MIB, 7 * MIB + 1])
def test_slots_within_a_room_take_no_more(tmp_path: Path, room: int) -> None:
    with volume_at(tmp_path / "v", 64 * MIB) as volume:
        slots = slots_within(room, PAGE)
        if slots:
            assert slab_bytes(volume.new_header(bytes(32), slots, PAGE)) <= room
        more = slab_bytes(volume.new_header(bytes(32), slots + 2, PAGE))
        assert more > room


def test_a_probe_writes_and_syncs_a_page(tmp_path: Path) -> None:
    io = FaultyIO(Random(0))
    volume = Volume(io, tmp_path / "v", MIB)
    for _ in range(2):
        volume.probe()
    assert (io.calls["write"], io.calls["sync"], io.calls["close"]) == (2, 2, 2)
    assert (volume.path / "probe").stat().st_size == PAGE
    volume.close()


def test_too_little_free_space_is_an_error_that_says_how_much(tmp_path: Path) -> None:
    with volume_at(tmp_path / "v") as volume:
        volume.check_space(1 << 60)
    with volume_at(tmp_path / "v", min_free=MIB) as volume:
        volume.check_space()
        with pytest.raises(OSError, match=r"less than min_free \(1 MiB\)"):
            volume.check_space(1 << 60)

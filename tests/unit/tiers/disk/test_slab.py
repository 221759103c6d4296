"""Behaviour of `kvtier.tiers.disk.slab` on real files: what comes back is what was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from kvtier.core.block import BlockKey, Lane
from kvtier.memory import ByteArray
from kvtier.testing import FaultyIO, payload_for
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.slab import Fetched, Filling, NoRoomError, Slab, slab_bytes
from kvtier.tiers.disk.volume import Volume
from tests.conformance.spaces import PAGE, aligned

IDENTITY = bytes(range(32))
SLOTS = 12
WHOLE, DAMAGED, UNREADABLE = Fetched.WHOLE, Fetched.DAMAGED, Fetched.UNREADABLE


@pytest.fixture
def io() -> FaultyIO:
    return FaultyIO(Random(0))


@pytest.fixture
def volume(tmp_path: Path, io: FaultyIO) -> Iterator[Volume]:
    volume = Volume(io, tmp_path / "volume", 4 << 20)
    yield volume
    io.heal()
    volume.close()


@pytest.fixture
def slab(volume: Volume) -> Iterator[Slab]:
    slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), 1, 0)
    slab.populate(SLOTS)
    yield slab
    slab.close()


def filling(slot: int, sequence: int = 1, length: int = PAGE) -> Filling:
    block_hash = bytes([slot]) * 16
    cell = aligned(PAGE)
    cell[:] = 0xAA
    cell[:length] = payload_for(block_hash, length)
    return Filling(slot, sequence, cell, length, BlockKey(Lane(), block_hash))


def fetch(slab: Slab, *slots: int, length: int = PAGE) -> list[Fetched]:
    cells = [aligned(PAGE) for _ in slots]
    results = slab.fetch(slots, cells, [length] * len(slots))
    for slot, cell, result in zip(slots, cells, results, strict=True):
        if result is WHOLE:
            assert (cell[:length] == filling(slot, length=length).cell[:length]).all()
    return results


def flip(slab: Slab, slot: int, offset: int = 0) -> None:
    with slab.data_path.open("r+b") as file:
        file.seek(slot * PAGE + offset)
        [byte] = file.read(1)
        file.seek(slot * PAGE + offset)
        file.write(bytes([byte ^ 1]))


def test_both_files_are_allocated_to_the_last_byte(slab: Slab) -> None:
    assert slab.data_path.stat().st_size == SLOTS * PAGE
    assert slab.table_path.stat().st_size == slab.header.table_bytes
    for path in (slab.data_path, slab.table_path):
        assert path.stat().st_blocks * 512 >= path.stat().st_size
        assert path.stat().st_mode & 0o777 == 0o600
    assert fmt.decode_header(slab.table_path.read_bytes()) == slab.header


def test_blocks_are_read_as_they_were_written(slab: Slab) -> None:
    slab.store(IDENTITY, [filling(slot) for slot in (7, 2, 3, 0)])
    assert fetch(slab, 0, 2, 3, 7) == [WHOLE] * 4
    assert fetch(slab, 5) == [DAMAGED]


def test_only_the_length_of_a_block_counts(slab: Slab) -> None:
    slab.store(IDENTITY, [filling(1, length=1000)])
    flip(slab, 1, offset=1000)
    assert fetch(slab, 1, length=1000) == [WHOLE]
    flip(slab, 1, offset=999)
    assert fetch(slab, 1, length=1000) == [DAMAGED]


def test_a_damaged_block_does_not_concern_its_neighbours(slab: Slab) -> None:
    slab.store(IDENTITY, [filling(slot) for slot in range(SLOTS)])
    flip(slab, 4)
    results = fetch(slab, *range(SLOTS))
    assert results == [DAMAGED if slot == 4 else WHOLE for slot in range(SLOTS)]


def test_records_are_as_the_blocks(slab: Slab) -> None:
    slab.store(IDENTITY, [filling(slot, sequence=slot + 10) for slot in (3, 1)])
    records = slab.records(IDENTITY, 0)
    assert (records.slots, records.sequences) == ([1, 3], [11, 13])
    assert (records.damaged, records.foreign) == (0, 0)
    assert [bytes(each) for each in records.digests] == [bytes(slab.digests[s]) for s in (1, 3)]
    assert slab.records(bytes(32), 0).foreign == 2
    assert slab.records(IDENTITY, 2).slots == [3]


def test_an_erased_record_is_empty_and_synced(slab: Slab, io: FaultyIO) -> None:
    slab.store(IDENTITY, [filling(slot) for slot in range(4)])
    syncs = io.calls["sync"]
    slab.erase([2, 0])
    assert io.calls["sync"] == syncs + 1
    assert slab.records(IDENTITY, 0).slots == [1, 3]
    data = slab.table_path.read_bytes()
    assert data[4096 : 4096 + 256] == bytes(256)


def test_consecutive_slots_are_one_call_each_way(slab: Slab, io: FaultyIO) -> None:
    writes, reads = io.calls["write"], io.calls["read"]
    slab.store(IDENTITY, [filling(slot) for slot in (5, 4, 6, 9)])
    assert io.calls["write"] == writes + 4  # two runs of payloads, two of records
    assert fetch(slab, 4, 5, 6, 9) == [WHOLE] * 4
    assert io.calls["read"] == reads + 2


def test_a_sector_that_cannot_be_read_costs_one_block(slab: Slab, io: FaultyIO) -> None:
    slab.store(IDENTITY, [filling(slot) for slot in range(4)])
    io.fail_reads(errno.EIO, calls=2)
    assert fetch(slab, 0, 1, 2, 3) == [UNREADABLE, WHOLE, WHOLE, WHOLE]
    io.fail_reads(errno.EIO, calls=1)
    assert fetch(slab, 2) == [UNREADABLE]
    assert fetch(slab, 2) == [WHOLE]


def test_a_payload_that_was_not_written_has_no_record(slab: Slab, io: FaultyIO) -> None:
    io.fail_writes(errno.EIO, calls=1)
    with pytest.raises(OSError, match="injected"):
        slab.store(IDENTITY, [filling(0)])
    assert slab.records(IDENTITY, 0).slots == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_leaves_no_file(volume: Volume, io: FaultyIO, number: int) -> None:
    slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), 1, 0)
    io.fail_allocations(number, calls=1)
    with pytest.raises(NoRoomError):
        slab.populate(SLOTS)
    assert not list(volume.path.glob("slab-*"))
    assert volume.growth_error
    slab.populate(SLOTS)
    assert volume.growth_error == ""
    slab.discard()


def test_another_error_of_allocation_leaves_no_file_either(volume: Volume, io: FaultyIO) -> None:
    slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), 1, 0)
    io.fail_allocations(errno.EIO, calls=1)
    with pytest.raises(OSError, match="injected") as caught:
        slab.populate(SLOTS)
    assert not isinstance(caught.value, NoRoomError)
    assert not list(volume.path.glob("slab-*"))


def test_an_attempt_that_failed_late_leaves_no_descriptor(volume: Volume, io: FaultyIO) -> None:
    slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), 1, 0)
    before = len(os.listdir("/proc/self/fd"))
    io.fail_writes(errno.EIO, calls=1)  # the header
    with pytest.raises(OSError, match="injected"):
        slab.populate(SLOTS)
    slab.populate(SLOTS)
    slab.discard()
    left = len(os.listdir("/proc/self/fd")) - before
    for fd in range(3, 4096):  # so that this test leaves none, whatever it finds
        try:
            if "(deleted)" in os.readlink(f"/proc/self/fd/{fd}") and "slab-" in os.readlink(
                f"/proc/self/fd/{fd}"
            ):
                os.close(fd)
        except OSError:
            continue
    assert left == 0


class BufferedOnlyIO(BlockIO):
    """A file system that refuses O_DIRECT."""

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().open(path, flags)


def test_the_first_slab_that_cannot_be_direct_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume(BufferedOnlyIO(), tmp_path, 4 << 20)
    for number in (1, 2):
        slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), number, 0)
        slab.populate(SLOTS)
        slab.store(IDENTITY, [filling(0)])
        assert fetch(slab, 0) == [WHOLE]
        slab.close()
    volume.close()
    assert [each.getMessage() for each in caplog.records] == [
        f"DISK {tmp_path}: the file system refuses O_DIRECT; going through the page cache"
    ]


def test_two_slabs_are_not_promised_the_same_space(tmp_path: Path) -> None:
    """The device is smaller than the capacity."""
    io = BlockIO()
    volume = Volume(io, tmp_path, 2 * io.free_bytes(tmp_path))
    before = volume.growth_bytes
    slabs = [Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), n, 0) for n in (1, 2)]
    assert before - volume.growth_bytes >= 2 * slab_bytes(slabs[0].header)
    slabs[0].populate(SLOTS)
    slabs[0].discard()
    for slab in slabs:
        volume.slab_gone(slab)
    assert not volume._unmade_bytes
    volume.close()


def test_a_slab_that_is_discarded_is_gone_or_aside(volume: Volume) -> None:
    slabs = [Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), n, 0) for n in (1, 2)]
    for slab in slabs:
        slab.populate(SLOTS)
    slabs[1].is_set_aside = True
    for slab in slabs:
        slab.discard()
        volume.slab_gone(slab)
    assert not list(volume.path.glob("slab-*"))
    aside = {each.name for each in (volume.path / "aside").iterdir()}
    assert aside == {f"{slabs[1].name}.data", f"{slabs[1].name}.table"}
    assert volume.allocated_bytes > volume.reserve_bytes + SLOTS * PAGE


def test_a_closed_slab_is_not_synced_and_closes_twice(slab: Slab, io: FaultyIO) -> None:
    slab.close()
    before = io.calls["sync"]
    slab.sync()
    slab.close()
    assert io.calls["sync"] == before


@pytest.mark.parametrize(("slots", "damaged"), [(12, 8), (128, 8), (320, 20)])
def test_beyond_repair_is_a_share_of_the_slots(volume: Volume, slots: int, damaged: int) -> None:
    slab = Slab(volume, volume.new_header(bytes(32), slots, PAGE), 1, 0)
    slab.damaged.update(range(damaged - 1))
    assert not slab.is_beyond_repair
    slab.damaged.add(damaged - 1)
    assert slab.is_beyond_repair


class Refusing(FaultyIO):
    """A file system that takes O_DIRECT and refuses the first transfer."""

    def read(self, fd: int, buffers: Sequence[ByteArray], offset: int) -> int:
        if os.get_blocking(fd) and (os.O_DIRECT & _flags(fd)):
            raise OSError(errno.EINVAL, "no")
        return super().read(fd, buffers, offset)


def _flags(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith("flags"))


def test_a_file_system_without_o_direct_is_used_through_the_page_cache(tmp_path: Path) -> None:
    volume = Volume(Refusing(Random(0)), tmp_path / "volume", 4 << 20)
    slab = Slab(volume, volume.new_header(bytes(32), SLOTS, PAGE), 1, 0)
    slab.populate(SLOTS)
    assert not slab.is_direct
    slab.store(IDENTITY, [filling(0)])
    assert fetch(slab, 0) == [WHOLE]
    slab.close()
    volume.close()

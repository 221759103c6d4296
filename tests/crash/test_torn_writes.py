"""Writes that a crash tore apart cost the blocks that were being written, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from kvtier import NamespaceSpec
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.slab import Slab
from tests.crash.images import Image, disk_class, fill, image_of, read_all
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

_SPEC = spec_of("torn", 6000)  # does not fill its slot
_SIZES = Sizes(disk_bytes=64 * MIB, host_bytes=4 * MIB)
_BLOCKS = 96
_LAST = 18
_SECTOR_BYTES = 512
_SLOT_BYTES = 8 * KIB


@dataclass(frozen=True)
class Tear:
    """Everything of one file behind an offset, as far as the last write went."""

    suffix: str
    offset: int
    behind: str
    is_table_written: bool


@pytest.fixture(scope="module")
def images(memory_path: Path) -> tuple[Image, Image]:
    """Before and after the last write, which went to used slots of the largest slab."""
    directory = memory_path / "torn"
    directory.mkdir()
    return run(lambda: _make(directory))


async def _make(directory: Path) -> tuple[Image, Image]:
    live, old, new = directory / "live", directory / "old", directory / "new"
    node = Node([live], _SIZES)
    await node.start()
    hashes = await fill(node, _SPEC, "early", _BLOCKS)
    before = await image_of(node, live, old, _SPEC, hashes)
    node = Node([live], _SIZES)
    await node.start()
    _free_last_slots(node, _SPEC)
    stored = await node.store(_SPEC, hashes_of("late", _LAST))
    await node.disk.demotion.flush()
    return before, await image_of(node, live, new, _SPEC, stored)


def _free_last_slots(node: Node, spec: NamespaceSpec) -> None:
    """As an eviction does it: the records stay."""
    size_class = disk_class(node, spec)
    slab = max(size_class.extents, key=lambda each: each.used_slots)
    assert isinstance(slab, Slab)
    for slot in size_class.live_slots(slab)[-_LAST:]:
        size_class.forget(size_class.table.owner[slot])
    for each in size_class.extents:  # only these slots are there to be taken
        if each is not slab:
            size_class.withdraw(each)


def _tears(late: Image) -> Iterator[Tear]:
    slots = [place.slot for place in late.places.values()]
    assert len({place.stem for place in late.places.values()}) == 1
    for behind in ("zeros", "noise", "old"):
        first, end = min(slots) * _SLOT_BYTES, (max(slots) + 1) * _SLOT_BYTES
        for offset in range(first, end, _SECTOR_BYTES):
            yield Tear(".data", offset, behind, offset // _SECTOR_BYTES % 2 == 0)
        first = fmt.HEADER_BYTES + min(slots) * fmt.RECORD_BYTES
        end = fmt.HEADER_BYTES + (max(slots) + 1) * fmt.RECORD_BYTES
        for offset in range(first, end, fmt.RECORD_BYTES // 4):
            yield Tear(".table", offset, behind, True)


def _spoil(path: Path, before: Image, late: Image, tear: Tear, random: Random) -> set[bytes]:
    """The late blocks that are whole all the same, record and payload."""
    [stem] = {place.stem for place in late.places.values()}
    slots = [place.slot for place in late.places.values()]
    item, start = (
        (_SLOT_BYTES, 0) if tear.suffix == ".data" else (fmt.RECORD_BYTES, fmt.HEADER_BYTES)
    )
    end = start + (max(slots) + 1) * item
    with (path / (stem + tear.suffix)).open("r+b") as file:
        file.seek(tear.offset)
        file.write(_behind(before.path / (stem + tear.suffix), tear, end, random))
    if not tear.is_table_written:
        table = f"{stem}.table"
        (path / table).write_bytes((before.path / table).read_bytes())
        return set()
    used = late.spec.block_bytes[0] if tear.suffix == ".data" else fmt.RECORD_BYTES
    return {
        block_hash
        for block_hash, place in late.places.items()
        if start + place.slot * item + used <= tear.offset
    }


def _behind(old: Path, tear: Tear, end: int, random: Random) -> bytes:
    size = end - tear.offset
    if tear.behind == "zeros":
        return bytes(size)
    if tear.behind == "noise":
        return random.randbytes(size)
    return old.read_bytes()[tear.offset : end]


def test_a_torn_write_costs_only_what_was_being_written(
    images: tuple[Image, Image], memory_path: Path
) -> None:
    before, late = images
    random = Random(1)
    tears = list(_tears(late))
    assert len(tears) >= 1000
    for tear in random.sample(tears, times(len(tears))):
        path = late.copy_to(memory_path / "copy")
        whole = _spoil(path, before, late, tear, random)
        run(lambda path=path, whole=whole: _check(path, before, late, whole))  # type: ignore[misc]


async def _check(path: Path, before: Image, late: Image, whole: set[bytes]) -> None:
    overwritten = {place: each for each, place in before.places.items()}
    replaced = {overwritten[place] for place in late.places.values()}
    node, right = await read_all(path, _SPEC, [*before.hashes, *late.hashes], _SIZES)
    assert set(before.hashes) - replaced <= right
    assert whole <= right
    await node.stop()


@pytest.mark.parametrize("suffix", [".data", ".table"])
def test_files_that_are_cut_off_give_no_wrong_block(
    images: tuple[Image, Image], memory_path: Path, suffix: str
) -> None:
    _, late = images
    random = Random(2)
    [stem] = {place.stem for place in late.places.values()}
    for _ in range(times(50)):
        path = late.copy_to(memory_path / "copy")
        file = path / (stem + suffix)
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.truncate(random.randrange(size // _SECTOR_BYTES) * _SECTOR_BYTES)
        run(lambda path=path: _read(path, late))  # type: ignore[misc]


async def _read(path: Path, late: Image) -> None:
    node, _ = await read_all(path, _SPEC, late.hashes, _SIZES)
    await node.stop()

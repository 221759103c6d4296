"""A bit that is wrong, anywhere in what DISK keeps, costs at most what it belongs to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from kvtier.tiers.disk import format as fmt
from tests.crash.images import Image, Place, fill, image_of, read_all
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.faults.blocks import spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

_SPEC = spec_of("flips", 3000)  # does not fill its slot
_SLOT_BYTES = 4 * KIB
_SIZES = Sizes(disk_bytes=64 * MIB, host_bytes=4 * MIB)
_BLOCKS = 480
_FLIPS = 25
#: Fewer damaged payloads than would condemn a slab.
_MOST_IN_A_SLAB = 7


@dataclass
class Damage:
    """Bits to turn, by file and number; and what they mean to a reader."""

    bits: set[tuple[str, int]] = field(default_factory=set)
    headers: set[str] = field(default_factory=set)
    records: set[Place] = field(default_factory=set)
    payloads: set[Place] = field(default_factory=set)


@pytest.fixture(scope="module")
def image(memory_path: Path) -> Image:
    directory = memory_path / "flips"
    directory.mkdir()

    async def make() -> Image:
        node = Node([directory / "live"], _SIZES)
        await node.start()
        hashes = await fill(node, _SPEC, "some", _BLOCKS)
        return await image_of(node, directory / "live", directory / "image", _SPEC, hashes)

    return run(make)


def _damage(image: Image, random: Random) -> Damage:
    damage = Damage()
    stems = sorted(image.headers)
    weights = [image.headers[stem].slots for stem in stems]
    while len(damage.bits) < _FLIPS:
        [stem] = random.choices(stems, weights)
        place = Place(stem, random.randrange(image.headers[stem].slots))
        match random.choices(("header", "record", "payload"), (2, 50, 48))[0]:
            case "header":
                damage.headers.add(stem)
                bit = (f"{stem}.table", random.randrange(fmt.HEADER_BYTES * 8))
            case "record":
                damage.records.add(place)
                start = fmt.HEADER_BYTES + place.slot * fmt.RECORD_BYTES
                bit = (f"{stem}.table", start * 8 + random.randrange(fmt.RECORD_BYTES * 8))
            case _:
                byte = random.randrange(_SLOT_BYTES)
                if byte < _SPEC.block_bytes[0]:
                    if _payloads_in(damage, stem) == _MOST_IN_A_SLAB:
                        continue
                    damage.payloads.add(place)
                bit = (
                    f"{stem}.data",
                    (place.slot * _SLOT_BYTES + byte) * 8 + random.randrange(8),
                )
        damage.bits.add(bit)
    return damage


def _payloads_in(damage: Damage, stem: str) -> int:
    return Counter(place.stem for place in damage.payloads)[stem]


def _flip(path: Path, damage: Damage) -> None:
    for name, number in damage.bits:
        with (path / name).open("r+b") as file:
            file.seek(number // 8)
            byte = file.read(1)[0]
            file.seek(number // 8)
            file.write(bytes([byte ^ 1 << number % 8]))


def test_flipped_bits_are_found_and_counted(image: Image, memory_path: Path) -> None:
    random = Random(3)
    for _ in range(times(10_000) // _FLIPS):
        damage = _damage(image, random)
        path = image.copy_to(memory_path / "copy")
        _flip(path, damage)
        run(lambda path=path, damage=damage: _check(path, image, damage))  # type: ignore[misc]


async def _check(path: Path, image: Image, damage: Damage) -> None:
    node, right = await read_all(path, _SPEC, image.hashes, _SIZES)
    readable = {
        block_hash
        for block_hash, place in image.places.items()
        if place.stem not in damage.headers and place not in damage.records
    }
    rotten = {each for each in readable if image.places[each] in damage.payloads}
    assert right == readable - rotten
    stats = node.stats()
    records = [place for place in damage.records if place.stem not in damage.headers]
    assert stats.corrupt_count == len(records) + len(rotten)
    assert stats.error_count == 0
    assert stats.block_count == len(right)
    await node.stop()
    node, again = await read_all(path, _SPEC, image.hashes, _SIZES)
    assert again == right
    await node.stop()


def test_flipped_bits_in_the_list_of_namespaces_give_no_wrong_block(
    image: Image, memory_path: Path
) -> None:
    random = Random(4)
    text = (image.path / "namespaces.json").read_bytes()
    for number in random.sample(range(len(text) * 8), min(times(1000), len(text) * 8)):
        path = image.copy_to(memory_path / "copy")
        data = bytearray(text)
        data[number // 8] ^= 1 << number % 8
        (path / "namespaces.json").write_bytes(data)
        run(lambda path=path: _read(path, image))  # type: ignore[misc]


async def _read(path: Path, image: Image) -> None:
    node, _ = await read_all(path, _SPEC, image.hashes, _SIZES)
    await node.stop()

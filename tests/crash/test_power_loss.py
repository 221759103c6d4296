"""The power fails: what was flushed is there, and nothing that is there is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from kvtier.core.block import Lane, Tier
from tests.crash.images import disk_class
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.crash.power_loss import ForgetfulIO
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

_SPECS = (spec_of("small", 4 * KIB), spec_of("large", 9000), spec_of("third", 30 * KIB))
_SIZES = Sizes(disk_bytes=4 * MIB, host_bytes=4 * MIB)
#: Of the youngest keys: more than DISK has room for.
_REMEMBERED = 1500
Key = tuple[int, bytes]


def test_what_was_flushed_survives_a_power_cut(memory_path: Path) -> None:
    """DISK is small, so that classes take slabs from each other; what is evicted may be lost."""
    random = Random(1)
    everything: dict[Key, None] = {}
    flushes_done: list[int] = []
    for cycle in range(times(150)):
        run(
            lambda cycle=cycle, everything=everything: _live(  # type: ignore[misc]
                memory_path / "disk", random, cycle, everything, flushes_done
            )
        )
        everything = dict.fromkeys(list(everything)[-_REMEMBERED:])
    assert len(flushes_done) >= times(150)


async def _live(
    path: Path,
    random: Random,
    cycle: int,
    everything: dict[Key, None],
    flushes_done: list[int],
) -> None:
    io = ForgetfulIO()
    node = Node([path], _SIZES, io)
    await node.start()
    await _judge(node, everything)
    flushed: dict[Key, int] = {}
    evicted = _evicted(node)
    for number in range(random.randint(2, 8)):
        # One class at a time grows, at the cost of the others.
        index = (cycle // 4 + (random.random() < 0.2)) % len(_SPECS)
        sequence = f"{cycle}/{number}"
        stored = await node.store(_SPECS[index], hashes_of(sequence, random.randint(8, 40)))
        everything.update(dict.fromkeys((index, each) for each in stored))
        if random.random() < 0.5:
            flushes = [node.upkeep.flush(Tier.DISK) for _ in range(2)]
            answers = await asyncio.gather(*flushes, return_exceptions=True)
            if not any(isinstance(each, BaseException) for each in answers):
                flushed = _on_disk(node, everything)  # else a class has too little of DISK
                evicted = _evicted(node)
                flushes_done.append(cycle)
    io.cut()
    # What was evicted since and written again is not flushed; what has only moved is.
    has_moved_only = [now == then for now, then in zip(_evicted(node), evicted, strict=True)]
    kept = {
        key
        for key, generation in _on_disk(node, everything).items()
        if key in flushed and (flushed[key] == generation or has_moved_only[key[0]])
    }
    await node.stop()
    io.forget(random)
    node = Node([path], _SIZES)
    await node.start()
    right = await _judge(node, everything)
    assert kept <= right, f"lost {len(kept - right)} of {len(kept)} that were flushed"
    await node.stop()


def _evicted(node: Node) -> list[int]:
    return [disk_class(node, spec).counters.evicted for spec in _SPECS]


def _on_disk(node: Node, keys: dict[Key, None]) -> dict[Key, int]:
    """With the generation of each one's slot."""
    found: dict[Key, int] = {}
    for index, spec in enumerate(_SPECS):
        hashes = [each for number, each in keys if number == index]
        size_class = disk_class(node, spec)
        rows = size_class.find_many(Lane(), hashes)
        generations = size_class.table.generations
        slot = size_class.residency.slot
        for each, row in zip(hashes, rows, strict=True):
            if row >= 0:
                found[index, each] = generations[slot[row]]
    return found


async def _judge(node: Node, keys: dict[Key, None]) -> set[Key]:
    """Loads everything; what is right."""
    right: set[Key] = set()
    for index, spec in enumerate(_SPECS):
        answer = await node.load(spec, [each for number, each in keys if number == index])
        assert answer.wrong == []
        right |= {(index, each) for each in answer.right}
    node.audit()
    return right

"""What of a request's blocks is here, and the names by which its chain is known later."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from typing import Final

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import STEP
from kvtier.core.policies.chains import Chains
from kvtier.core.residency import NONE, Residency

#: Of a long path, the blocks at its two ends that are looked at.
HEAD_ROWS: Final = 256
TAIL_ROWS: Final = 768
#: So far back is walked from a block.
_MOST_ROWS: Final = 4096


def last_known(residency: Residency, chains: Chains, keys: BlockKeys) -> Generator[None, None, int]:
    """The index of the last block that is here, or is a chain's name; -1 if there is none."""
    find_row, find_name = residency.find, chains.find
    lane, tag, hashes = keys.lane, tag_of(keys.lane), keys.hashes
    for done, index in enumerate(range(len(hashes) - 1, -1, -1), 1):
        block_hash = hashes[index]
        if find_name(block_hash + tag) != NONE or find_row(lane, block_hash) != NONE:
            return index
        if done % STEP == 0:
            yield
    return NONE


def path_of(residency: Residency, keys: BlockKeys) -> tuple[int, list[int]]:
    """The index of the first block that is not here, and the rows of all before it; of a long
    path, those at its two ends: one turn of the loop has no time for more."""
    find, lane, hashes = residency.find, keys.lane, keys.hashes
    missing, most = len(hashes), HEAD_ROWS + TAIL_ROWS
    if missing > most:  # ends go before their beginnings
        missing = bisect_left(hashes, True, key=lambda each: find(lane, each) == NONE)
    ends = hashes[:missing]
    if missing > most:
        ends = ends[:HEAD_ROWS] + ends[-TAIL_ROWS:]
    path = residency.find_many(lane, ends)
    if NONE in path:
        gap = path.index(NONE)
        missing -= len(path) - gap if gap >= HEAD_ROWS else missing - gap
        path = path[:gap]
    if keys.parent:
        path = path_to(residency, find(lane, keys.parent)) + path
    return missing, path if len(path) <= most else path[:HEAD_ROWS] + path[-TAIL_ROWS:]


def path_to(residency: Residency, row: int) -> list[int]:
    """A block, after those before it; the last of very many."""
    path: list[int] = []
    parent = residency.parent
    while row != NONE and len(path) < _MOST_ROWS:
        path.append(row)
        row = parent(row)
    path.reverse()
    return path


def names_of(keys: BlockKeys, depth: int, missing: int) -> list[bytes]:
    """The first block to be stored, the last two; of new ones those at depths 1, 2, 4, ..."""
    count, tag = len(keys.hashes), tag_of(keys.lane)
    places = {max(0, count - 2), count - 1}
    if missing < count:
        places.add(missing)
    for power in range((keys.position + count).bit_length()):
        place = (1 << power) - 1 - keys.position
        if depth < place < count:
            places.add(place)
    return [keys.hashes[place] + tag for place in sorted(places)]


def tag_of(lane: Lane) -> bytes:
    """Hashes of different lanes are different names."""
    return lane.group.to_bytes(4) + lane.shard.to_bytes(4) if lane != (0, 0) else b""

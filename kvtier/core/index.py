"""A hash table that never stops the event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_SHARDS = 256


class HashIndex:
    """Block hash to row. Missing is -1.

    A dict of a million entries takes 100 ms to grow, on the event loop. 256 small ones, chosen by
    the hash's first byte, grow in turns of less than 1 ms. Neither bytes nor ints are walked by the
    garbage collector.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]

    def get(self, block_hash: bytes) -> int:
        return self._shards[block_hash[0]].get(block_hash, -1)

    def get_many(self, hashes: Iterable[bytes]) -> list[int]:
        shards = self._shards
        return [shards[each[0]].get(each, -1) for each in hashes]

    def put(self, block_hash: bytes, row: int) -> None:
        self._shards[block_hash[0]][block_hash] = row

    def pop(self, block_hash: bytes) -> int:
        return self._shards[block_hash[0]].pop(block_hash, -1)

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __iter__(self) -> Iterator[bytes]:
        for shard in self._shards:
            yield from shard

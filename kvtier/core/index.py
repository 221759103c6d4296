"""Block hashes by row and rows by block hash, without ever stopping the event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

_SHARDS = 256
_CHUNK_BITS = 14
_CHUNK_MASK = (1 << _CHUNK_BITS) - 1


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


class HashColumn:
    """Row to block hash; empty for rows not in use.

    NumPy arrays of objects, which the garbage collector does not walk as it would a list, and
    chunks of them, so that growing moves nothing.
    """

    __slots__ = ("_chunks", "_length")

    def __init__(self) -> None:
        self._chunks: list[npt.NDArray[np.object_]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> bytes:
        block_hash: bytes = self._chunks[row >> _CHUNK_BITS][row & _CHUNK_MASK]
        return block_hash

    def __setitem__(self, row: int, block_hash: bytes) -> None:
        self._chunks[row >> _CHUNK_BITS][row & _CHUNK_MASK] = block_hash

    def extend(self, rows: int) -> None:
        """So many more rows, not in use."""
        self._length += rows
        while len(self._chunks) << _CHUNK_BITS < self._length:
            self._chunks.append(np.full(1 << _CHUNK_BITS, b"", dtype=object))

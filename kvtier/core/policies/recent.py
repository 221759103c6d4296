"""What was heard of lately."""

from __future__ import annotations

_SHARDS = 256
_FEWEST = 4096


class Recent:
    """Names, each with a number; at least the last `most` of them are remembered, about, and at
    most twice as many.

    256 parts, chosen by a name's first byte, each of which drops its older half when the younger
    one is full: O(1), and no long turns.
    """

    def __init__(self) -> None:
        self._young: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        self._old: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        self._most_in_shard = 0
        self.remember(_FEWEST)

    def __len__(self) -> int:
        return sum(map(len, self._young)) + sum(map(len, self._old))

    def remember(self, most: int) -> None:
        """How many names; 4,096 at least."""
        self._most_in_shard = max(most, _FEWEST) // _SHARDS

    def get(self, name: bytes) -> int:
        """Its number, which is not negative; -1 if it is not remembered."""
        shard = name[0]
        number = self._young[shard].get(name, -1)
        return number if number >= 0 else self._old[shard].get(name, -1)

    def put(self, name: bytes, number: int) -> None:
        shard = name[0]
        young = self._young[shard]
        young[name] = number
        if len(young) > self._most_in_shard:
            self._old[shard] = young
            self._young[shard] = {}

    def discard(self, name: bytes) -> None:
        self._young[name[0]].pop(name, None)
        self._old[name[0]].pop(name, None)

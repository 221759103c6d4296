"""What the cluster was heard to have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from kvtier.core.block import Lane

_MOST_ANSWERS = 1 << 18

Place = tuple[int, Lane]


class Existence:
    """Answers about blocks, by namespace id and lane, each believed for a while.

    At most 262,144 are kept; beyond, the older half of a lane's goes.
    """

    def __init__(
        self, clock: Callable[[], float], *, hit_seconds: float, miss_seconds: float
    ) -> None:
        self._clock = clock
        self._hit_seconds = hit_seconds
        self._miss_seconds = miss_seconds
        #: Until when; negative for a block that is not there.
        self._until: dict[Place, dict[bytes, float]] = {}
        self._count = 0

    def known(self, place: Place, hashes: Iterable[bytes]) -> list[bool | None]:
        """Whether each block is there; None where nobody knows any more."""
        until, now = self._until.get(place, {}), self._clock()
        found: list[bool | None] = []
        for block_hash in hashes:
            end = until.get(block_hash, 0.0)
            found.append(end > 0 if abs(end) > now else None)
        return found

    def note(
        self, place: Place, hashes: Sequence[bytes], *, is_there: bool, is_refused: bool = False
    ) -> None:
        """What was just heard, or done.

        A block that is refused is not there for as long as one that is there would be: what its
        name has will hardly be better soon.
        """
        now = self._clock()
        seconds = self._hit_seconds if is_there or is_refused else self._miss_seconds
        end = now + seconds if is_there else -now - seconds
        until = self._until.setdefault(place, {})
        before = len(until)
        for block_hash in hashes:
            until.pop(block_hash, None)  # to the end: the oldest come first
            until[block_hash] = end
        self._count += len(until) - before
        if self._count > _MOST_ANSWERS:
            self._drop_older_half()

    def _drop_older_half(self) -> None:
        largest = max(self._until.values(), key=len)
        for block_hash in list(islice(largest, (len(largest) + 1) // 2)):
            del largest[block_hash]
            self._count -= 1

    def clear(self) -> None:
        self._until.clear()
        self._count = 0

    def forget(self, namespace_id: int) -> None:
        """All of a namespace."""
        for place in [each for each in self._until if each[0] == namespace_id]:
            self._count -= len(self._until.pop(place))

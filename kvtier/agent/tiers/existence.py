"""What the cluster was heard to have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from kvtier.core.block import Lane

_MOST_ANSWERS = 1 << 16

Place = tuple[int, Lane]
_Answers = defaultdict[Place, dict[bytes, float]]


class Existence:
    """Answers about blocks, by namespace id and lane, each believed for a while.

    The youngest 32,768 at least are kept, and 65,536 and a batch at most: a full half makes way for
    a new one.
    """

    def __init__(
        self, clock: Callable[[], float], *, hit_seconds: float, miss_seconds: float
    ) -> None:
        self._clock = clock
        self._hit_seconds = hit_seconds
        self._miss_seconds = miss_seconds
        # Until when; negative for a block that is not there.
        self._young: _Answers = defaultdict(dict)
        self._old: _Answers = defaultdict(dict)
        self._young_count = 0

    def known(self, place: Place, hashes: Iterable[bytes]) -> list[bool | None]:
        """Whether each block is there; None where nobody knows any more."""
        young, old, now = self._young.get(place, {}), self._old.get(place, {}), self._clock()
        found: list[bool | None] = []
        for block_hash in hashes:
            end = young.get(block_hash) or old.get(block_hash, 0.0)
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
        young = self._young[place]
        before = len(young)
        young.update(dict.fromkeys(hashes, end))
        self._young_count += len(young) - before
        if self._young_count > _MOST_ANSWERS // 2:
            self._old, self._young, self._young_count = self._young, defaultdict(dict), 0

    def clear(self) -> None:
        """All."""
        self._old, self._young, self._young_count = defaultdict(dict), defaultdict(dict), 0

    def forget(self, namespace_id: int) -> None:
        """All of a namespace."""
        for answers in (self._old, self._young):
            for place in [each for each in answers if each[0] == namespace_id]:
                count = len(answers.pop(place))
                self._young_count -= count if answers is self._young else 0

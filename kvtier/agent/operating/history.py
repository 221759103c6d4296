"""What became of blocks that are not here any more: a bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from kvtier.core.block import Lane, Tier
from kvtier.core.cause import Cause
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

_WAYS: Final = 32
_ENTRY_BYTES: Final = 16
# A fact is one signed 64-bit number: 36 bits of time in sixteenths of a second, 19 of the taker's
# namespace id, 3 of the tier, 5 of the cause.
_TIME_STEPS: Final = 16
_TIME_SHIFT, _TAKER_SHIFT, _TIER_SHIFT = 27, 8, 5
_MOST_TAKERS: Final = 1 << (_TIME_SHIFT - _TAKER_SHIFT)


class Fact(NamedTuple):
    """The last thing that is known of a block, at a time in seconds of the wall clock.

    `taker` is the id of the namespace that it made way for; 0 is its own, or unknown.
    """

    cause: Cause
    tier: Tier
    taker: int
    time: float


class History:
    """The last things that happened to some `blocks` blocks; the oldest are forgotten first.

    As in the caches of processors, a fingerprint names a set of 32 entries, of which a new one
    replaces the oldest. So nothing ever grows or is searched for when something is noted: two
    arrays of numbers, of a size known from the start. What happened within the last half of
    `blocks` notes is found with a probability of 99.9 %, and nothing is found that did not happen
    but for fingerprints of 64 bits that are equal.

    `wall_clock` gives seconds, and may jump: order does not depend on it. The event loop owns it;
    a note takes less than 1 us.
    """

    def __init__(self, blocks: int, wall_clock: Callable[[], float]) -> None:
        self._sets = -(-blocks // _WAYS)
        self._fingerprints = array("q", [0]) * (_WAYS * self._sets)
        self._facts = array("q", [0]) * (_WAYS * self._sets)
        self._next = bytearray(self._sets)
        self._wall_clock = wall_clock
        self.entry_count = 0
        self.dropped_count = 0

    @property
    def capacity(self) -> int:
        """Blocks."""
        return self._sets * _WAYS

    @property
    def size_bytes(self) -> int:
        """All its memory, from the start."""
        return self.capacity * _ENTRY_BYTES + self._sets

    def listen(self, tier: SlotTier) -> None:
        """Notes what leaves a tier; before its first size class is made."""
        name, superseded = tier.tier, Cause.SUPERSEDED

        def forgotten(size_class: SizeClass, row: int, cause: Cause, taker: int) -> None:
            if cause != superseded:
                lane, block_hash = size_class.residency.describe(row)
                self.note(size_class.table.namespace_id, lane, block_hash, name, cause, taker)

        tier.on_forget = forgotten

    def note_refusals(
        self,
        size_class: SizeClass,
        lane: Lane,
        hashes: Sequence[bytes],
        cause: Cause,
        tier: Tier = Tier.HOST,
    ) -> None:
        """A tier did not let these in."""
        for each in hashes:
            self.note_refusal(size_class.table.namespace_id, lane, each, tier, cause)

    def note_damaged_value(self, namespace_id: int, lane: Lane, block_hash: bytes) -> None:
        """CLUSTER had something else under its name."""
        self.note(namespace_id, lane, block_hash, Tier.CLUSTER, Cause.DAMAGED)

    def note(
        self,
        namespace_id: int,
        lane: Lane,
        block_hash: bytes,
        tier: Tier,
        cause: Cause,
        taker: int = 0,
    ) -> None:
        """It left a tier."""
        # Python keys its hashes of bytes by a secret, and keeps them with the object.
        fingerprint = hash((namespace_id, lane, block_hash))
        number = fingerprint % self._sets
        way = self._next[number]
        self._next[number] = way + 1 & _WAYS - 1
        place = number * _WAYS + way
        facts = self._facts
        if facts[place]:
            self.dropped_count += 1
        else:
            self.entry_count += 1
        self._fingerprints[place] = fingerprint
        facts[place] = (
            int(self._wall_clock() * _TIME_STEPS) << _TIME_SHIFT
            | (taker << _TAKER_SHIFT if taker < _MOST_TAKERS else 0)
            | tier << _TIER_SHIFT
            | cause
        )

    def note_refusal(
        self, namespace_id: int, lane: Lane, block_hash: bytes, tier: Tier, cause: Cause
    ) -> None:
        """It was not let in. Of many times the last one counts: whoever tries again and again does
        not push out what is known of others."""
        place = self._find(hash((namespace_id, lane, block_hash)))
        if place >= 0 and _cause(self._facts[place]).is_refusal:
            steps = int(self._wall_clock() * _TIME_STEPS)
            self._facts[place] = steps << _TIME_SHIFT | tier << _TIER_SHIFT | cause
        else:
            self.note(namespace_id, lane, block_hash, tier, cause)

    def find(self, namespace_id: int, lane: Lane, block_hash: bytes) -> Fact | None:
        """The last thing that is known of a block."""
        return next(self.facts(namespace_id, lane, block_hash), None)

    def facts(self, namespace_id: int, lane: Lane, block_hash: bytes) -> Iterator[Fact]:
        """All that is known of a block, the last thing first."""
        for place in self._places(hash((namespace_id, lane, block_hash))):
            fact = self._facts[place]
            yield Fact(
                _cause(fact),
                Tier(fact >> _TIER_SHIFT & 7),
                fact >> _TAKER_SHIFT & _MOST_TAKERS - 1,
                (fact >> _TIME_SHIFT) / _TIME_STEPS,
            )

    def _find(self, fingerprint: int) -> int:
        """The place of the youngest entry, or -1."""
        return next(self._places(fingerprint), -1)

    def _places(self, fingerprint: int) -> Iterator[int]:
        """Of entries, the youngest first."""
        number = fingerprint % self._sets
        first, way = number * _WAYS, self._next[number]
        ways = self._fingerprints[first : first + _WAYS]
        if fingerprint not in ways:
            return
        for each in range(way + _WAYS - 1, way - 1, -1):
            place = first + each % _WAYS
            if ways[each % _WAYS] == fingerprint and self._facts[place]:
                yield place


def _cause(fact: int) -> Cause:
    return Cause(fact & (1 << _TIER_SHIFT) - 1)

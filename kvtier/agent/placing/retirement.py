"""Which extents of a tier go when it gets smaller."""

from __future__ import annotations

from typing import Final

from kvtier.agent.turns import slices
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import NO_OWNER, Extent
from kvtier.tiers.slot_tier import SlotTier, Space

_CLASS_SLICE = 64
_EXTENT_SLICE = 16
_SAMPLES = 16
#: The coldness of a class that can give an extent and lose no block.
SPARE: Final = -1.0


async def offers(tier: SlotTier, needed: dict[int, int]) -> list[tuple[float, int, SizeClass]]:
    """Classes that could give an extent, with the rank of what they would lose first."""
    offers = []
    classes = tier.classes
    async for part in slices(len(classes), _CLASS_SLICE):
        for number in range(part.start, part.stop):
            candidates = _candidates(classes[number], needed)
            if candidates:
                smallest = min(each.populated_slots for each in candidates)
                rank: float = SPARE
                if classes[number].free_slots < smallest:
                    coldest = classes[number].coldest_rank()
                    rank = float("inf") if coldest is None else coldest
                offers.append((rank, number, classes[number]))
    return offers


async def ordered(
    size_class: SizeClass, needed: dict[int, int], *, with_references: bool
) -> list[Extent]:
    """Extents of a class that can go, those first that cost least."""
    candidates = _candidates(size_class, needed)
    keyed = []
    async for part in slices(len(candidates), _EXTENT_SLICE):
        for number in range(part.start, part.stop):
            extent = candidates[number]
            is_referenced = size_class.has_references(extent)
            if with_references or not is_referenced:
                keyed.append((is_referenced, _warmth(size_class, extent), number))
    return [candidates[number] for _, _, number in sorted(keyed)]


def choose(
    space: Space,
    extents: list[Extent],
    needed: dict[int, int],
    *,
    share: int = 1,
    most_slots: int = 1 << 62,
) -> list[Extent]:
    """As many of the first ones as must go, of a class that gives one part in `share` and at
    most so many slots. The last one is the smallest that is enough."""
    counted = space.counted_bytes
    left, chosen = dict(needed), dict[Extent, None]()
    most_bytes = -(-sum(map(counted, extents)) // share)
    for extent in extents:
        want = left.get(extent.stripe, 0)
        if want <= 0 or extent in chosen:
            continue
        if counted(extent) > want:
            rest = [
                each
                for each in extents
                if each.stripe == extent.stripe and each not in chosen and counted(each) >= want
            ]
            extent = min(rest, key=counted)
        if extent.populated_slots > most_slots:
            continue
        most_slots -= extent.populated_slots
        chosen[extent] = None
        left[extent.stripe] -= counted(extent)
        most_bytes -= counted(extent)
        if most_bytes <= 0:
            break
    for extent in reversed(list(chosen)):  # the last one may be more than enough
        if left[extent.stripe] + counted(extent) <= 0:
            left[extent.stripe] += counted(extent)
            del chosen[extent]
    return list(chosen)


def _candidates(size_class: SizeClass, needed: dict[int, int]) -> list[Extent]:
    return [
        each
        for each in size_class.extents
        if each.stripe in needed and not each.populating and not each.retiring
    ]


def _warmth(size_class: SizeClass, extent: Extent) -> int:
    """When a typical block of an extent was last used, judged by a sample."""
    if not extent.used_slots:
        return 0
    owner, step = size_class.table.owner, max(1, extent.slots // _SAMPLES)
    rows = [owner[slot] for slot in range(extent.base, extent.base + extent.slots, step)]
    ranks = sorted(size_class.policy.rank(row) for row in rows if row != NO_OWNER)
    return ranks[len(ranks) // 2] if ranks else 0

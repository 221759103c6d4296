"""Blocks of a namespace, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.agent.placing.evicting import is_pinned
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.turns import READ_SLICE, WRITE_SLICE, slices
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.residency import NONE
from kvtier.errors import InvalidRequestError
from kvtier.tiers.size_class import SizeClass

#: Rows that are judged in one turn: some dozen NumPy calls.
_SCAN_SLICE: Final = 4096

_Rows = npt.NDArray[np.int64]
_Keys = npt.NDArray[np.float64]


class Order(IntEnum):
    """What a listing is sorted by (numbers as in the proto)."""

    TABLE = 1
    AGE = 2
    HITS = 3
    SIZE = 4
    POSITION = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """Which blocks, and in which order; `keys` None: all of them. Times in seconds."""

    tiers: frozenset[Tier]
    keys: BlockKeys | None = None
    ends_only: bool = False
    pinned_only: bool = False
    leased_only: bool = False
    min_age_seconds: float = 0.0
    order: Order = Order.TABLE
    descending: bool = False


class Place(NamedTuple):
    """Where a listing goes on: behind this sort key and place. Parts are the size classes of the
    tiers, or the tiers where keys are given; in them rows count, or keys."""

    key: float
    part: int
    number: int

    def __str__(self) -> str:
        return f"{self.key.hex()}/{self.part}/{self.number}"

    @classmethod
    def parse(cls, token: str) -> Place:
        """Raises InvalidRequestError for what no listing gave."""
        try:
            key, part, number = token.split("/")
            place = cls(float.fromhex(key), int(part), int(number))
        except (ValueError, OverflowError):
            place = cls(0.0, 0, -1)
        if place.part < 0 or not 0 <= place.number < 1 << 62:
            raise InvalidRequestError("page_token is not one that this agent gave")
        return place


@dataclass(frozen=True, slots=True)
class Listed:
    """A block in one tier; `age_seconds` is infinite if it is not known."""

    lane: Lane
    block_hash: bytes
    position: int
    tier: Tier
    other_tiers: list[Tier]
    slot_bytes: int
    age_seconds: float
    hit_count: int
    is_pinned: bool
    is_leased: bool


class _Part(NamedTuple):
    tier: Tier
    size_class: SizeClass


class _Slice(NamedTuple):
    """Some rows of a part, and their places in it."""

    number: int
    part: _Part
    indexes: _Rows
    rows: _Rows


async def page_of_blocks(
    namespace: Namespace, wish: Wish, size: int, after: Place | None
) -> tuple[list[Listed], Place | None]:
    """Up to so many blocks, and where the next page begins; None at the end.

    Every block of the tiers is looked at, but in TABLE order, with never more than a page of them
    kept; other work has its turn all the time.
    """
    best = _Best(size + 1)
    async for scanned in _scan(namespace, wish, after):
        best.offer(scanned, _keys_of(scanned, wish), after)
        if wish.order is Order.TABLE and best.is_full:
            break
    chosen = best.sorted()
    listed: list[Listed] = []
    parts = _parts(namespace, wish)
    async for part in slices(min(size, len(chosen)), WRITE_SLICE // 2):
        for _, place, row in chosen[part]:
            tier, size_class = parts[place.part]
            if len(_matching(size_class, np.array([row]), wish)):
                listed.append(_listed(namespace, tier, size_class, row))
    more = len(chosen) > size
    return listed, chosen[size - 1][1] if more else None


def _parts(namespace: Namespace, wish: Wish) -> list[_Part]:
    """In the same order for each page: size classes are as old as the namespace."""
    tiers = [tier for tier in namespace.tiers if tier in wish.tiers]
    if wish.keys is not None:
        group = wish.keys.lane.group
        return [_Part(tier, namespace.tiers[tier][group]) for tier in tiers]
    return [_Part(tier, each) for tier in tiers for each in namespace.classes_of(tier)]


async def _scan(namespace: Namespace, wish: Wish, after: Place | None) -> AsyncIterator[_Slice]:
    """All rows that are wanted. A row may be another block's when the caller goes on."""
    keys, is_table = wish.keys, wish.order is Order.TABLE
    for number, part in enumerate(_parts(namespace, wish)):
        if is_table and after is not None and number < after.part:
            continue
        count = part.size_class.residency.row_count if keys is None else len(keys.hashes)
        first = after.number if is_table and after is not None and number == after.part else 0
        async for piece in slices(count - first, _SCAN_SLICE if keys is None else READ_SLICE):
            start, stop = first + piece.start, first + piece.stop
            indexes = np.arange(start, stop)
            rows = indexes
            if keys is not None:
                found = part.size_class.residency.find_many(keys.lane, keys.hashes[start:stop])
                rows = np.array(found)
            is_wanted = _is_wanted(part.size_class, rows, wish)
            yield _Slice(number, part, indexes[is_wanted], rows[is_wanted])


def _matching(size_class: SizeClass, rows: _Rows, wish: Wish) -> _Rows:
    return rows[_is_wanted(size_class, rows, wish)]


def _is_wanted(size_class: SizeClass, rows: _Rows, wish: Wish) -> npt.NDArray[np.bool_]:
    """Of each row, whether it has a block, not -1, of which all is true that is wished."""
    wanted = np.zeros(len(rows), np.bool_)
    residency = size_class.residency
    chosen = np.flatnonzero(rows != NONE)
    if len(chosen):
        slots = np.frombuffer(residency.slot, np.int64)[rows[chosen]]
        chosen = chosen[slots != NONE]
    if wish.ends_only and len(chosen):
        first_child = np.frombuffer(residency.first_child, np.int32)[rows[chosen]]
        chosen = chosen[first_child == NONE]
    if wish.pinned_only:
        chosen = chosen[size_class.pinned.of(rows[chosen])]
    if wish.leased_only and len(chosen):
        chosen = chosen[size_class.are_in_use(rows[chosen])]
    if len(chosen):
        ages, ttl = size_class.lifetimes.ages_of(rows[chosen]), size_class.lifetimes.ttl_seconds
        is_old_enough = ages >= wish.min_age_seconds
        chosen = chosen[is_old_enough if ttl is None else is_old_enough & (ages < ttl)]
    wanted[chosen] = True
    return wanted


def _keys_of(scanned: _Slice, wish: Wish) -> _Keys:
    """What the rows are sorted by, ascending."""
    size_class, rows = scanned.part.size_class, scanned.rows
    keys = np.zeros(len(rows))
    if not len(rows):
        return keys
    match wish.order:
        case Order.AGE:  # by the time of the store, which does not go on
            keys = -size_class.lifetimes.stored_at_of(rows)
        case Order.HITS:
            keys = size_class.uses.of(rows).astype(np.float64)
        case Order.POSITION:
            keys = size_class.residency.positions(rows).astype(np.float64)
        case Order.SIZE:
            keys = np.full(len(rows), float(size_class.slot_bytes))
            if wish.ends_only:
                keys *= 1 + size_class.residency.positions(rows)
    return -keys if wish.descending else keys


class _Best:
    """The first so many of all that is offered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys: _Keys = np.empty(0)
        # Part, index and row of each.
        self._places: _Rows = np.empty((0, 3), np.int64)

    @property
    def is_full(self) -> bool:
        return len(self._keys) == self._count

    def offer(self, scanned: _Slice, keys: _Keys, after: Place | None) -> None:
        numbers = np.full(len(keys), scanned.number)
        places = np.stack([numbers, scanned.indexes, scanned.rows], axis=1)
        if after is not None:
            is_later = (numbers > after.part) | (
                (numbers == after.part) & (scanned.indexes > after.number)
            )
            is_behind = (keys > after.key) | ((keys == after.key) & is_later)
            keys, places = keys[is_behind], places[is_behind]
        keys = np.concatenate([self._keys, keys])
        places = np.concatenate([self._places, places])
        if len(keys) > self._count:  # stable: of equal ones those that lie first
            first = np.argsort(keys, kind="stable")[: self._count]
            keys, places = keys[first], places[first]
        self._keys, self._places = keys, places

    def sorted(self) -> list[tuple[float, Place, int]]:
        """With the place and the row of each."""
        order = np.argsort(self._keys, kind="stable").tolist()
        return [
            (key, Place(key, part, index), row)
            for key, (part, index, row) in zip(
                self._keys[order].tolist(), self._places[order].tolist(), strict=True
            )
        ]


def _listed(namespace: Namespace, tier: Tier, size_class: SizeClass, row: int) -> Listed:
    lane, block_hash = size_class.residency.describe(row)
    others = {
        other: None  # several devices are one tier
        for other, classes in namespace.places
        if other is not tier and classes[lane.group].find(lane, block_hash) != NONE
    }
    return Listed(
        lane,
        block_hash,
        size_class.residency.position(row),
        tier,
        list(others),
        size_class.slot_bytes,
        size_class.lifetimes.age(row),
        int(size_class.uses.of(np.array([row]))[0]),
        is_pinned(namespace, lane, block_hash),
        size_class.is_in_use(row),
    )

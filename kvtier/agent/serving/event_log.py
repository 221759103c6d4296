"""What came and went of one namespace: its last changes, in order."""

from __future__ import annotations

import asyncio
import secrets
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from kvtier.core.block import Lane, Tier
from kvtier.core.residency import NONE
from kvtier.errors import EventsLostError
from kvtier.tiers.size_class import SizeClass

# What happened is one number: the size class, the group (8 bits), the shard (16), whether it came.
_CLASS_SHIFT: Final = 25
_GROUP_SHIFT: Final = 17
_CAME: Final = 1
_WENT: Final = 0


class Change(Enum):
    """Of a block, in a tier."""

    STORED = "stored"
    REMOVED = "removed"


@dataclass(slots=True)
class Run:
    """The same change of several blocks of one lane in one tier, one after the other.

    Those that were stored continue each other; `parent` is the hash before the first one.
    """

    change: Change
    tier: Tier
    lane: Lane
    hashes: list[bytes]
    parent: bytes = b""
    position: int = 0


@dataclass(eq=False, slots=True)
class Batch:
    """All changes up to a revision; within a snapshot that is 0."""

    runs: list[Run] = field(default_factory=list)
    revision: int = 0
    is_snapshot_end: bool = False


class EventLog:
    """The last `kept` changes; the first one ever has revision 1.

    It hears of changes from `attach` to `detach`. To write one down takes a microsecond and waits
    for nobody: arrays, of a size known from the start, are written round and round, and whoever
    reads too late is told so. The event loop owns it.
    """

    def __init__(self, tiers: Mapping[Tier, Sequence[SizeClass]], kept: int) -> None:
        #: Of this log alone.
        self.epoch = secrets.randbits(64) or 1
        self.kept = kept
        #: Of the last change.
        self.revision = 0
        #: Is set by every change.
        self.changed = asyncio.Event()
        #: Is called when `due_revision` comes; -1: never.
        self.on_due: Callable[[EventLog], None] = lambda log: None
        self.due_revision = -1
        self._tiers = {each: tier for tier, groups in tiers.items() for each in groups}
        #: In the order in which a snapshot reads them.
        self.size_classes = list(self._tiers)
        self._numbers = {each: number for number, each in enumerate(self.size_classes)}
        self._hashes: npt.NDArray[np.object_] = np.full(kept, b"", dtype=object)
        self._parents: npt.NDArray[np.object_] = np.full(kept, b"", dtype=object)
        self._what = array("q", [0]) * kept
        self._rows = array("i", [0]) * kept
        self._positions = array("I", [0]) * kept
        self._last_start, self._last_batch = 0, Batch()

    @property
    def size_bytes(self) -> int:
        """Its memory, as if its hashes were nowhere else."""
        columns = (self._what, self._rows, self._positions)
        numbers = sum(len(each) * each.itemsize for each in columns)
        hashes = min(self.revision, self.kept) * sys.getsizeof(self._hashes[0])
        return numbers + self._hashes.nbytes + self._parents.nbytes + hashes

    def attach(self) -> None:
        """From now on it hears of changes."""
        for each in self.size_classes:
            each.witness = self

    def detach(self) -> None:
        for each in self.size_classes:
            each.witness = None

    def came(self, size_class: SizeClass, row: int) -> None:
        """A block is in a tier now."""
        lane, block_hash, parent, position = size_class.residency.key(row)
        place = self.revision % self.kept
        self._parents[place] = parent
        self._positions[place] = position
        self._note(place, size_class, row, lane, block_hash, _CAME)

    def goes(self, size_class: SizeClass, row: int) -> None:
        """A block is about to leave a tier."""
        lane, block_hash = size_class.residency.describe(row)
        self._note(self.revision % self.kept, size_class, row, lane, block_hash, _WENT)

    def _note(
        self,
        place: int,
        size_class: SizeClass,
        row: int,
        lane: Lane,
        block_hash: bytes,
        change: int,
    ) -> None:
        number = self._numbers[size_class]
        self._what[place] = (
            number << _CLASS_SHIFT | lane.group << _GROUP_SHIFT | lane.shard << 1 | change
        )
        self._rows[place] = row
        self._hashes[place] = block_hash
        self.revision += 1
        self.changed.set()
        if self.revision == self.due_revision:
            self.on_due(self)

    # Reading.

    def check(self, start: int) -> None:
        """Raises EventsLostError unless all changes from a revision on can be read."""
        first = max(1, self.revision - self.kept + 1)
        if not first <= start <= self.revision + 1:
            raise EventsLostError(
                f"changes from revision {start} on cannot be sent: {first} to {self.revision} are "
                "kept (events.kept); start over with a snapshot"
            )

    def batch(self, start: int, most: int) -> Batch:
        """Up to so many changes, from a revision on; raises EventsLostError.

        Who asks for the same as the one before gets the same object.
        """
        self.check(start)
        stop = min(self.revision + 1, start + most)
        if (self._last_start, self._last_batch.revision) != (start, stop - 1):
            joining = Joining(self)
            for revision in range(start, stop):
                self.add_to(joining, revision)
            self._last_start, self._last_batch = start, Batch(joining.runs, stop - 1)
        return self._last_batch

    def add_to(self, joining: Joining, revision: int) -> None:
        place = (revision - 1) % self.kept
        joining.add(
            self._what[place], self._hashes[place], self._parents[place], self._positions[place]
        )

    def place_of(self, revision: int) -> tuple[int, int]:
        """The number of the size class and the row of a change."""
        place = (revision - 1) % self.kept
        return self._what[place] >> _CLASS_SHIFT, self._rows[place]

    def add_row_to(self, joining: Joining, number: int, row: int) -> None:
        """As if the block had come now."""
        lane, block_hash, parent, position = self.size_classes[number].residency.key(row)
        what = number << _CLASS_SHIFT | lane.group << _GROUP_SHIFT | lane.shard << 1 | _CAME
        joining.add(what, block_hash, parent, position)

    def tier_of(self, number: int) -> Tier:
        return self._tiers[self.size_classes[number]]


class Joining:
    """Makes runs of changes."""

    def __init__(self, log: EventLog) -> None:
        self.runs: list[Run] = []
        self._log = log
        self._what = -1
        self._hashes: list[bytes] = []
        self._position = 0

    def add(self, what: int, block_hash: bytes, parent: bytes, position: int) -> None:
        hashes = self._hashes
        if (
            what == self._what
            and len(block_hash) == len(hashes[0])
            and (
                not what & _CAME
                or (parent == hashes[-1] and position == self._position + len(hashes))
            )
        ):
            hashes.append(block_hash)
            return
        self._what, self._hashes, self._position = what, [block_hash], position
        tier = self._log.tier_of(what >> _CLASS_SHIFT)
        lane = Lane(what >> _GROUP_SHIFT & 0xFF, what >> 1 & 0xFFFF)
        if what & _CAME:
            run = Run(Change.STORED, tier, lane, self._hashes, parent, position)
        else:
            run = Run(Change.REMOVED, tier, lane, self._hashes)
        self.runs.append(run)


class Snapshot:
    """What there is, in parts, while it changes.

    A part has what changed since the part before among the rows that were read, then some more
    rows. Both are read in one turn of the loop, so that all parts so far, replayed, are exactly
    what those rows hold: what happens to the others is seen when they are read.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next_revision = log.revision + 1
        self._number = self._row = 0

    def part(self, most: int) -> Batch:
        """Up to so many changes, and so many rows if that was all. Raises EventsLostError."""
        log, joining = self._log, Joining(self._log)
        log.check(self._next_revision)
        stop = min(log.revision + 1, self._next_revision + most)
        for revision in range(self._next_revision, stop):
            if log.place_of(revision) < (self._number, self._row):
                log.add_to(joining, revision)
        self._next_revision = stop
        if stop <= log.revision:
            return Batch(joining.runs)
        self._read_rows(joining, most)
        is_end = self._number == len(log.size_classes)
        return Batch(joining.runs, log.revision if is_end else 0, is_end)

    def _read_rows(self, joining: Joining, most: int) -> None:
        while most and self._number < len(self._log.size_classes):
            residency = self._log.size_classes[self._number].residency
            stop = min(self._row + most, residency.row_count)
            for row in range(self._row, stop):
                if residency.slot[row] != NONE:
                    self._log.add_row_to(joining, self._number, row)
            most -= stop - self._row
            self._row = stop
            if stop == residency.row_count:
                self._number, self._row = self._number + 1, 0

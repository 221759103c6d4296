"""Slots that the agent has granted: read under a lease, or written under a reservation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvtier.client.arrays import Rows
from kvtier.client.extents import MappedExtent
from kvtier.core.block import BlockStatus
from kvtier.errors import KvtierError
from kvtier.memory import ByteArray
from kvtier.v1 import block_pb2

#: One BlockStatus per key.
Statuses = npt.NDArray[np.uint8]


class GrantedSlots:
    """Where each block of a batch is, one entry per key; entries without a slot are not OK."""

    def __init__(
        self,
        statuses: Statuses,
        slots: block_pb2.Slots,
        extents: Mapping[int, MappedExtent],
        block_bytes: int,
    ) -> None:
        count = len(statuses)
        self.statuses = statuses
        self.block_bytes = block_bytes
        self._extents = extents
        self._extent_ids = np.fromiter(slots.extent, np.int64, count)
        self._slots = np.fromiter(slots.slot, np.int64, count)
        self._generations = np.fromiter(slots.generation, np.uint64, count)
        for extent_id in np.unique(self._extent_ids[statuses == BlockStatus.OK]):
            if int(extent_id) not in extents:  # retired since the agent answered
                self.statuses[self._extent_ids == extent_id] = BlockStatus.EXPIRED

    def runs(self) -> Iterator[tuple[int, int, ByteArray]]:
        """Consecutive keys in consecutive slots: first key, one past the last, their cells."""
        ok = np.flatnonzero(self.statuses == BlockStatus.OK)
        if not len(ok):
            return
        where = self._extent_ids[ok] << 32 | self._slots[ok]
        breaks = np.flatnonzero((np.diff(where) != 1) | (np.diff(ok) != 1)) + 1
        for run in np.split(ok, breaks):
            first, last = int(run[0]), int(run[-1])
            cells = self._extents[int(self._extent_ids[first])].cells
            slot = int(self._slots[first])
            yield first, last + 1, cells[slot : slot + last + 1 - first, : self.block_bytes]

    def cell(self, index: int) -> ByteArray | None:
        """The bytes of one block in the agent's memory; None if it is not OK."""
        if self.statuses[index] != BlockStatus.OK:
            return None
        cells = self._extents[int(self._extent_ids[index])].cells
        cell: ByteArray = cells[int(self._slots[index]), : self.block_bytes]
        return cell

    def expire_changed(self) -> None:
        """Marks as EXPIRED what may have been written by others since the grant."""
        ok = self.statuses == BlockStatus.OK
        for extent_id in np.unique(self._extent_ids[ok]):
            mine = ok & (self._extent_ids == extent_id)
            current = self._extents[int(extent_id)].generations[self._slots[mine]]
            changed = np.flatnonzero(mine)[current != self._generations[mine]]
            self.statuses[changed] = BlockStatus.EXPIRED


def copy_out(slots: GrantedSlots, rows: Rows) -> None:
    """From slots to the caller's memory; what was overwritten meanwhile becomes EXPIRED."""
    for first, stop, cells in slots.runs():
        if isinstance(rows, list):
            for row, cell in zip(rows[first:stop], cells, strict=True):
                np.copyto(row, cell)
        else:
            np.copyto(rows[first:stop], cells)
    slots.expire_changed()


def copy_in(slots: GrantedSlots, rows: Rows) -> None:
    """From the caller's memory to reserved slots."""
    for first, stop, cells in slots.runs():
        if isinstance(rows, list):
            for row, cell in zip(rows[first:stop], cells, strict=True):
                np.copyto(cell, row)
        else:
            np.copyto(cells, rows[first:stop])


class Loaded:
    """Blocks in the agent's memory, under a lease: a context manager, released at its end.

    `views` has one read-only array of [block_bytes] per key, None where the block is absent. The
    lease lasts `ttl_seconds`; use the bytes before that, or check `valid()` after using them: it
    tells whether they were still the blocks' up to then. Not thread-safe.
    """

    def __init__(
        self, slots: GrantedSlots, ttl_seconds: float, release: Callable[[], None]
    ) -> None:
        self._slots = slots
        self._release: Callable[[], None] | None = release
        self.ttl_seconds = ttl_seconds
        self.views = [slots.cell(index) for index in range(len(slots.statuses))]
        for view in self.views:
            if view is not None:
                view.flags.writeable = False

    @property
    def statuses(self) -> Statuses:
        """One BlockStatus per key."""
        return self._slots.statuses

    @property
    def count(self) -> int:
        """Leading blocks that are here."""
        return leading(self.statuses)

    def valid(self) -> bool:
        """Whether no slot was given to another block since the load."""
        before = np.count_nonzero(self.statuses == BlockStatus.OK)
        self._slots.expire_changed()
        return bool(before == np.count_nonzero(self.statuses == BlockStatus.OK))

    def release(self) -> None:
        """Ends the lease; the views may change from now on."""
        if self._release is not None:
            self._release()
            self._release = None

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Grantor(Protocol):
    """Who granted a reservation."""

    def commit(self, indexes: list[int]) -> list[int]:
        """Statuses of these keys."""
        ...

    def give_back(self) -> None:
        """Nobody writes any more. Never raises."""
        ...


class Reservation:
    """Slots to be written, then committed: a context manager, given back at its end if not.

    `cells` has one writable array of [block_bytes] per key, None where there is nothing to store.
    Nothing may write to a cell after `commit` or `release`. Not thread-safe.
    """

    def __init__(self, slots: GrantedSlots, ttl_seconds: float, grantor: Grantor) -> None:
        self._slots = slots
        self._grantor: Grantor | None = grantor
        self.ttl_seconds = ttl_seconds
        self.cells = [slots.cell(index) for index in range(len(slots.statuses))]

    @property
    def statuses(self) -> Statuses:
        """One BlockStatus per key: OK is to be written, or was stored."""
        return self._slots.statuses

    def write(self, rows: Rows) -> None:
        """Fills all cells that are OK from `rows`."""
        copy_in(self._slots, rows)

    def commit(self) -> Statuses:
        """Makes all cells that are OK blocks, and ends the reservation.

        The statuses say what became of each. Raises as the calls of a namespace do; whether the
        blocks were stored is unknown then.
        """
        indexes = np.flatnonzero(self.statuses == BlockStatus.OK)
        if self._grantor is not None and len(indexes):
            try:
                self.statuses[indexes] = self._grantor.commit(indexes.tolist())
            except KvtierError:
                self.statuses[indexes] = BlockStatus.EXPIRED
                raise
            finally:
                self.release()
        return self.statuses

    def release(self) -> None:
        """Gives back what was not committed."""
        if self._grantor is not None:
            self._grantor.give_back()
            self._grantor = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def leading(statuses: Statuses) -> int:
    """How many statuses are OK before the first that is not."""
    bad = np.flatnonzero(statuses != BlockStatus.OK)
    return int(bad[0]) if len(bad) else len(statuses)

"""Slots that the agent has granted: read under a lease, or written under a reservation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from kvtier.client.arrays import Rows
from kvtier.client.attachment import MappedExtent
from kvtier.client.device import copy
from kvtier.core.block import BlockStatus
from kvtier.memory import ByteArray
from kvtier.v1 import block_pb2

OK, EXPIRED = int(BlockStatus.OK), int(BlockStatus.EXPIRED)
PENDING, REFUSED = int(BlockStatus.PENDING), int(BlockStatus.REFUSED)


class GrantedSlots:
    """Where each block of a batch is, one entry per key; entries without a slot are not OK.

    Plain lists: for the batches of a request they are faster than arrays.
    """

    def __init__(
        self,
        statuses: list[int],
        slots: block_pb2.Slots,
        extents: Mapping[int, MappedExtent],
        block_bytes: int,
    ) -> None:
        self.statuses = statuses
        self.block_bytes = block_bytes
        self._extents = extents
        self._extent_ids = list(slots.extent)
        self._slots = list(slots.slot)
        self._generations = list(slots.generation)
        if len(extents) < len(set(self._extent_ids) - {0}):  # retired since the agent answered
            for index, extent_id in enumerate(self._extent_ids):
                if extent_id and extent_id not in extents:
                    statuses[index] = EXPIRED

    def __len__(self) -> int:
        return len(self.statuses)

    def runs(self) -> Iterator[tuple[int, int, Any]]:
        """Consecutive keys in consecutive slots: first key, one past the last, and their cells, a
        tensor if they are on a device."""
        for first, stop in self._spans():
            slot = self._slots[first]
            cells = self._extents[self._extent_ids[first]].cells
            yield first, stop, cells[slot : slot + stop - first, : self.block_bytes]

    def settle(self) -> None:
        """Returns when copies have ended that a device does for this thread's current stream."""
        for extent in self._extents.values():
            extent.settle()

    def _spans(self) -> Iterator[tuple[int, int]]:
        statuses, slots, extent_ids = self.statuses, self._slots, self._extent_ids
        stop = 0
        while stop < len(statuses):
            first = stop
            stop += 1
            if statuses[first] != OK:
                continue
            following, extent_id = slots[first] + 1, extent_ids[first]
            while (
                stop < len(statuses)
                and slots[stop] == following
                and extent_ids[stop] == extent_id
                and statuses[stop] == OK
            ):
                stop += 1
                following += 1
            yield first, stop

    def cells(self) -> list[Any]:
        """The bytes of each block in the agent's memory; None where it is not OK."""
        return [
            self._extents[extent_id].cells[slot, : self.block_bytes] if status == OK else None
            for status, extent_id, slot in zip(
                self.statuses, self._extent_ids, self._slots, strict=True
            )
        ]

    def expire_changed(self) -> bool:
        """Marks as EXPIRED what others may have written to since the grant; whether any was.

        Copies that a device does for this thread's current stream end before.
        """
        changed = False
        self.settle()
        for first, stop in self._spans():
            slot, generations = self._slots[first], self._generations[first:stop]
            table = self._extents[self._extent_ids[first]].generations
            if table[slot : slot + stop - first].tolist() != generations:
                changed = True
                for index in range(first, stop):
                    if table[self._slots[index]] != self._generations[index]:
                        self.statuses[index] = EXPIRED
        return changed


def copy_out(slots: GrantedSlots, rows: Rows) -> None:
    """From slots to the caller's memory; what was overwritten meanwhile becomes EXPIRED."""
    for first, stop, cells in slots.runs():
        if isinstance(rows, list):
            for row, cell in zip(rows[first:stop], cells, strict=True):
                copy(row, cell)
        else:
            copy(rows[first:stop], cells)
    slots.expire_changed()


def copy_in(slots: GrantedSlots, rows: Rows) -> None:
    """From the caller's memory to reserved slots."""
    for first, stop, cells in slots.runs():
        if isinstance(rows, list):
            for row, cell in zip(rows[first:stop], cells, strict=True):
                copy(cell, row)
        else:
            copy(cells, rows[first:stop])
    slots.settle()


class Loaded:
    """Blocks in the agent's memory, under a lease: a context manager, released at its end.

    `views` has one read-only array of [block_bytes] per key, None where the block is absent; of a
    worker on a device (`Client.use_device`), a tensor where the block is there, not to be written
    to. The lease lasts `ttl_seconds`; use the bytes before that, or check `valid()` after using
    them: it tells whether they were still the blocks' up to then. Not thread-safe.
    """

    def __init__(
        self, slots: GrantedSlots, ttl_seconds: float, release: Callable[[], None]
    ) -> None:
        self._slots = slots
        self._release: Callable[[], None] | None = release
        self.ttl_seconds = ttl_seconds

    @cached_property
    def views(self) -> list[Any]:
        """The bytes of each block."""
        views = self._slots.cells()
        for view in views:
            if isinstance(view, np.ndarray):
                view.flags.writeable = False
        return views

    def runs(self) -> Iterator[tuple[int, int, Any]]:
        """The same bytes with fewer arrays: the first key, one past the last one, and a read-only
        [keys, block_bytes] of what lies together."""
        for first, stop, cells in self._slots.runs():
            if isinstance(cells, np.ndarray):
                cells.flags.writeable = False
            yield first, stop, cells

    @property
    def statuses(self) -> list[int]:
        """One BlockStatus per key."""
        return self._slots.statuses

    @property
    def count(self) -> int:
        """Leading blocks that are here."""
        return leading(self.statuses)

    def valid(self) -> bool:
        """Whether no slot was given to another block since the load."""
        return not self._slots.expire_changed() and EXPIRED not in self.statuses

    def release(self) -> None:
        """Ends the lease; the views may change from now on."""
        if self._release is not None:
            self._release()
            self._release = None

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *exc: object) -> None:
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

    Nothing may write to a cell after `commit` or `release`. Not thread-safe.
    """

    def __init__(self, slots: GrantedSlots, ttl_seconds: float, grantor: Grantor) -> None:
        self._slots = slots
        self._grantor: Grantor | None = grantor
        self.ttl_seconds = ttl_seconds

    @property
    def statuses(self) -> list[int]:
        """One BlockStatus per key: OK is to be written, or was stored."""
        return self._slots.statuses

    @cached_property
    def cells(self) -> list[ByteArray | None]:
        """Where to write: one array of [block_bytes] per key, None where nothing is to store."""
        return self._slots.cells()

    def runs(self) -> Iterator[tuple[int, int, ByteArray]]:
        """The same places with fewer arrays: the first key, one past the last one, and a
        [keys, block_bytes] of what lies together."""
        return self._slots.runs()

    def write(self, rows: Rows) -> None:
        """Fills all cells that are OK from `rows`."""
        copy_in(self._slots, rows)

    def commit(self) -> list[int]:
        """Makes all cells that are OK blocks, and ends the reservation.

        The statuses say what became of each. Raises as the calls of a namespace do; whether the
        blocks were stored is unknown then.
        """
        statuses = self.statuses
        indexes = [index for index, status in enumerate(statuses) if status == OK]
        if not indexes:
            self.release()
        elif self._grantor is not None:
            outcome = [EXPIRED] * len(indexes)
            try:
                outcome = self._grantor.commit(indexes)
            finally:
                self.release()
                for index, status in zip(indexes, outcome, strict=True):
                    statuses[index] = status
        return statuses

    def release(self) -> None:
        """Gives back what was not committed: it is EXPIRED then."""
        if self._grantor is not None:
            self._grantor.give_back()
            self._grantor = None
            self.statuses[:] = [EXPIRED if status == OK else status for status in self.statuses]

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def leading(statuses: list[int]) -> int:
    """How many statuses are OK before the first that is not."""
    return next((i for i, status in enumerate(statuses) if status != OK), len(statuses))

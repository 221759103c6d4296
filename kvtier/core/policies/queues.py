"""Rows in queues, without objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from kvtier.core.residency import NONE

_UNLINKED = -1
_WALK_LIMIT = 32


class Queues:
    """Each row is in one of a few queues; those that may be candidates stand in its line.

    A line is a circular list, coldest first, in the order of the numbers (`order`) with which rows
    came into their queue; node `row + queues` is a row, node `queue` the end of its line. A row
    that joins the line late is put where its number belongs, looked for within 32 steps of either
    end; failing that, 32 steps from the hot end.

    `sizes` counts rows by queue, those out of line included; `order` and `queue_of` are by node,
    for others to read. Everything is O(1).
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.sizes = [0] * count
        self.order = array("Q", [0] * count)
        self.queue_of = bytearray(range(count))
        self._next = array("i", range(count))
        self._previous = array("i", range(count))

    def enter(self, row: int, queue: int, order: int) -> None:
        """A new row; it is not in line."""
        node = row + self.count
        if node >= len(self.order):
            self._grow(node + 1 - len(self.order))
        self.order[node] = order
        self.queue_of[node] = queue
        self.sizes[queue] += 1

    def _grow(self, count: int) -> None:
        self.order.extend([0] * count)
        self.queue_of.extend(bytes(count))
        self._next.extend([_UNLINKED] * count)
        self._previous.extend([_UNLINKED] * count)

    def leave(self, row: int) -> int:
        """Forgets a row and returns the queue in which it was."""
        node = row + self.count
        if self._next[node] != _UNLINKED:
            self._unlink(node)
        queue = self.queue_of[node]
        self.sizes[queue] -= 1
        return queue

    def move(self, row: int, queue: int, order: int) -> None:
        """To the hot end of a queue, if it is in line; `order` is greater than any there."""
        node = row + self.count
        self.order[node] = order
        before = self.queue_of[node]
        if before != queue:
            self.sizes[before] -= 1
            self.sizes[queue] += 1
            self.queue_of[node] = queue
        following = self._next
        if following[node] != _UNLINKED and following[node] != queue:
            self._unlink(node)
            self._link_after(node, self._previous[queue])

    def chill(self, row: int, order: int) -> None:
        """A new row counts as the coldest of its queue's line; if there is none it has `order`."""
        node = row + self.count
        queue = self.queue_of[node]
        first = self._next[queue]
        self.order[node] = order if first == queue else self.order[first]

    def is_in_line(self, row: int) -> bool:
        return self._next[row + self.count] != _UNLINKED

    def line_up(self, row: int) -> None:
        """Where its number belongs."""
        node = row + self.count
        queue, order = self.queue_of[node], self.order
        first = self._next[queue]
        if first == queue or order[node] <= order[first]:  # the parent of what was just evicted
            self._link_after(node, queue)
            return
        before = self._near_hot_end(queue, order[node])
        self._link_after(node, before if before != NONE else self._near_cold_end(node, queue))

    def line_up_before(self, row: int, other: int) -> None:
        """Next to another one of its queue, as the colder one."""
        self._link_after(row + self.count, self._previous[other + self.count])

    def has_place_near_hot_end(self, row: int) -> bool:
        """Whether `line_up` is exact because the row is young."""
        node = row + self.count
        return self._near_hot_end(self.queue_of[node], self.order[node]) != NONE

    def park(self, row: int) -> None:
        """Out of the line; it stays in its queue."""
        self._unlink(row + self.count)

    def coldest(self, queue: int) -> int:
        """The first in line, or -1."""
        return self.hotter(queue - self.count, queue)

    def hotter(self, row: int, queue: int) -> int:
        """The next in line after a row, or -1."""
        node = self._next[row + self.count]
        return NONE if node == queue else node - self.count

    def line(self, queue: int) -> Iterator[int]:
        """Rows, coldest first; nothing may change meanwhile."""
        node, following = self._next[queue], self._next
        while node != queue:
            yield node - self.count
            node = following[node]

    def _near_hot_end(self, queue: int, order: int) -> int:
        """The node after which this number belongs, if it is near."""
        orders, node = self.order, self._previous[queue]
        for _ in range(_WALK_LIMIT):
            if node == queue or orders[node] <= order:
                return node
            node = self._previous[node]
        return NONE

    def _near_cold_end(self, node: int, queue: int) -> int:
        orders, following = self.order, self._next
        order, other = orders[node], following[queue]
        for _ in range(_WALK_LIMIT):
            if orders[other] > order:
                return self._previous[other]
            other = following[other]
        other = queue
        for _ in range(_WALK_LIMIT):
            other = self._previous[other]
        return self._previous[other]

    def _link_after(self, node: int, before: int) -> None:
        after = self._next[before]
        self._next[before] = self._previous[after] = node
        self._next[node], self._previous[node] = after, before

    def _unlink(self, node: int) -> None:
        before, after = self._previous[node], self._next[node]
        self._next[before], self._previous[after] = after, before
        self._next[node] = self._previous[node] = _UNLINKED

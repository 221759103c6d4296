"""Records of requests' chains, by name."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from kvtier.core.index import HashColumn, HashIndex
from kvtier.core.policies.hit_density import NO_CLASS
from kvtier.core.residency import NONE

_FEWEST_NAMES = 4096
_MOST_NAMES = 1 << 18
_NAMES_PER_BLOCK = 4
_GROWTH_RECORDS = 64


class Chains:
    """Chains of which blocks are here, and, by their names, some of which none is any more.

    The names of those that are gone are bounded: 4 for each block here, at least 4096 and at most
    262,144; whose last block went first is forgotten first, and `on_forgotten` told. Columns are
    indexed by record; a record is valid while its `kind` is not NO_CLASS. They are for others to
    read and to set, but for `block_count`.
    """

    def __init__(self, ticks: Iterator[int], on_forgotten: Callable[[int], None]) -> None:
        self.kind = array("B")
        #: When it was last asked for, in seconds.
        self.last = array("d")
        self.stamp = array("Q")
        self.turn = array("I")
        #: Blocks of the whole chain, wherever they are.
        self.length = array("I")
        #: The running mean of log2 of the seconds between turns, plus one.
        self.pause = array("d")
        self.is_head = bytearray()
        #: Asked for, and nothing loaded or stored since.
        self.is_open = bytearray()
        #: Of its blocks here, the one that may go; -1 if none may.
        self.end = array("i")
        #: Where it stands among those of which one may go; -1 if it does not.
        self.place = array("i")
        self.block_count = array("I")
        self._ticks = ticks
        self._on_forgotten = on_forgotten
        self._free: list[int] = []
        self._by_name = HashIndex()
        self._names = HashColumn()
        self._name_bytes = array("I")
        self._departure = array("Q")  # 0: it has blocks
        self._departed: deque[tuple[int, int]] = deque()
        self._departures = 0
        self._blocks = 0
        self.departed_names = 0

    def __len__(self) -> int:
        return len(self.kind) - len(self._free)

    def __iter__(self) -> Iterator[int]:
        return (record for record, kind in enumerate(self.kind) if kind != NO_CLASS)

    def new(self, now: float, kind: int) -> int:
        """One without blocks and names: give it some, or `settle` it."""
        if not self._free:
            self._grow()
        record = self._free.pop()
        self.last[record], self.kind[record] = now, kind
        self.turn[record], self.length[record], self.pause[record] = 1, 0, 0.0
        self.is_head[record] = self.is_open[record] = False
        self.stamp[record] = next(self._ticks)
        return record

    def _grow(self) -> None:
        first, count = len(self.kind), _GROWTH_RECORDS
        zeros = [0] * count
        self.kind.extend([NO_CLASS] * count)
        for times in (self.last, self.pause):
            times.extend(zeros)
        for numbers in (self.stamp, self._departure):
            numbers.extend(zeros)
        for counts in (self.turn, self.length, self.block_count, self._name_bytes):
            counts.extend(zeros)
        for flags in (self.is_head, self.is_open):
            flags.extend(zeros)
        for places in (self.end, self.place):
            places.extend([NONE] * count)
        self._names.extend(count)
        self._free.extend(range(first + count - 1, first - 1, -1))

    # Blocks.

    def add_block(self, record: int) -> None:
        self._return(record)
        self.block_count[record] += 1
        self._blocks += 1

    def drop_block(self, record: int) -> None:
        self.block_count[record] -= 1
        self._blocks -= 1
        self.settle(record)

    def settle(self, record: int) -> None:
        """One without blocks is remembered for a while if it has names, else forgotten."""
        if self.block_count[record] or self._departure[record] or self.kind[record] == NO_CLASS:
            return
        if not self._name_bytes[record]:
            self._forget(record)
            return
        self._departures += 1
        self._departure[record] = self._departures
        self._departed.append((record, self._departures))
        self.departed_names += self._name_count(record)
        most = min(max(_NAMES_PER_BLOCK * self._blocks, _FEWEST_NAMES), _MOST_NAMES)
        while self.departed_names > most or len(self._departed) > most:
            oldest, departure = self._departed.popleft()
            if self._departure[oldest] == departure:
                self._return(oldest)
                self._forget(oldest)

    def _return(self, record: int) -> None:
        if self._departure[record]:
            self._departure[record] = 0
            self.departed_names -= self._name_count(record)

    def _forget(self, record: int) -> None:
        self._on_forgotten(record)
        self.rename(record, ())
        self.kind[record] = NO_CLASS
        self._free.append(record)

    # Names.

    def find(self, name: bytes) -> int:
        """The record that was given this name last, or -1."""
        return self._by_name.get(name)

    def rename(self, record: int, names: Iterable[bytes]) -> None:
        """All its names; they are of one length, and taken from others that had them."""
        self._return(record)
        by_name, old, size = self._by_name, self._names[record], self._name_bytes[record]
        for start in range(0, len(old), size or 1):
            name = old[start : start + size]
            if by_name.get(name) == record:
                by_name.pop(name)
        joined = b"".join(names := tuple(names))
        for name in names:
            by_name.put(name, record)
        self._names[record] = joined
        self._name_bytes[record] = len(names[0]) if names else 0

    def _name_count(self, record: int) -> int:
        size = self._name_bytes[record]
        return len(self._names[record]) // size if size else 0

    def check_integrity(self) -> None:
        """Raises AssertionError if books disagree."""
        departed = 0
        for record, kind in enumerate(self.kind):
            if kind == NO_CLASS:
                assert self.block_count[record] == self._name_bytes[record] == 0, record
                continue
            is_here = self.block_count[record] > 0
            assert is_here == (self._departure[record] == 0), record
            departed += 0 if is_here else self._name_count(record)
        assert departed == self.departed_names
        assert sum(self.block_count) == self._blocks
        assert len(self._free) == self.kind.count(NO_CLASS)

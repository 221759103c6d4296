"""Hit-density chains."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.index import HashColumn, HashIndex
from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.hit_density import (
    NO_CLASS,
    HitDensity,
    age_bin,
    first_class,
    head_class,
    later_class,
)
from kvtier.core.residency import NONE

_SAMPLE = 32
_REFRESH_REQUESTS = 200
_GHOST_KEYS_PER_BLOCK = 4
_FEWEST_GHOST_KEYS = 4096
_MOST_GHOST_KEYS = 1 << 18
_GROWTH_RECORDS = 64
_KEPT_PAUSE = 0.7
#: Who asked and has not loaded or stored anything since may ask again for so long.
_OPEN_SECONDS = 60.0
#: A load in parts is one use.
_LOAD_SECONDS = 2.0


class Hd:
    """Evicts the end of the chain with the least hits to expect for each second that it is held.

    Hit density is from LHD (Beckmann et al., NSDI 2018), the rule how long to hold from Gittins;
    see `hit_density`. The unit is a request's chain: a record of when it was last asked for, in
    which turn, and how long its pauses were. Each block belongs to the record of the last request
    that used it. The beginning that several chains share, a head, is a record of its own. Records
    have names, the keys of some of their blocks (the last two; of first turns also those at depths
    1, 2, 4, ...), also when their blocks are gone, so that a chain that comes back is recognised.

    A newcomer displaces only what is worth less: it may not be admitted at all.
    """

    def __init__(
        self,
        blocks: Blocks,
        context: Context,
    ) -> None:
        self._blocks = blocks
        self._residency = blocks.residency
        self._ticks = context.ticks
        self._clock = context.clock
        self._random = context.rng.random
        self._density = HitDensity()
        self._requests = 0
        self._owner = array("i")  # by row
        # By record.
        self._last = array("d")
        self._class = array("B")
        self._turn = array("I")
        self._length = array("I")
        self._pause = array("d")
        self._end = array("i")
        self._rows = array("I")
        self._stamp = array("Q")
        self._place = array("i")
        self._is_head = bytearray()
        self._is_open = bytearray()
        self._ghost = array("Q")
        self._names = HashColumn()
        self._name_bytes = array("I")
        self._free: list[int] = []
        self._candidates = array("i")
        self._by_name = HashIndex()
        self._ghosts: deque[tuple[int, int]] = deque()
        self._ghost_count = 0
        self._ghost_names = 0
        self._chosen = NONE
        self._chosen_worth = ALWAYS

    # Requests.

    def ask(self, keys: BlockKeys) -> None:
        hashes, lane = keys.hashes, keys.lane
        tag, now = _tag(lane), self._clock()
        known = self._by_name.get(hashes[-1] + tag)
        if known != NONE and self._is_open[known] and now - self._last[known] < _OPEN_SECONDS:
            return
        self._chosen = NONE
        self._requests += 1
        if self._requests % _REFRESH_REQUESTS == 0:
            self._density.refresh(self._class, self._last, now, _REFRESH_REQUESTS)
        rows = self._residency.find_many(lane, hashes)
        missing = rows.index(NONE) if NONE in rows else len(rows)
        row = rows[missing - 1] if missing else NONE
        if not missing and keys.parent:
            row = self._residency.find(lane, keys.parent)
        depth, record = self._deepest(hashes, rows, missing, tag)
        if record == NONE and row != NONE:
            record = self._owner[row]
        path = self._path(row)
        covered = keys.position + depth + 1
        if record != NONE and not self._is_head[record] and self._continues(record, covered):
            self._use_heads(path, now)
            record = self._next_turn(record, path, now)
        else:
            if record != NONE:
                self._branch(record, path, hashes[depth] + tag if depth >= 0 else b"", now)
            record = self._new_record(now, first_class(len(hashes) - 1 - depth))
        self._take_over(path, record)
        self._is_open[record] = True
        self._length[record] = keys.position + len(hashes)
        self._rename(record, self._names_of(keys, depth, missing, tag))
        self._let_go(record)

    def _continues(self, record: int, covered: int) -> bool:
        return covered >= 2 and 2 * covered >= self._length[record]

    def _deepest(
        self, hashes: Sequence[bytes], rows: Sequence[int], missing: int, tag: bytes
    ) -> tuple[int, int]:
        """The index of the last known block, and its record, -1 if that is before the first."""
        get = self._by_name.get
        for index in range(len(rows) - 1, missing - 1, -1):
            if rows[index] != NONE:
                return index, self._owner[rows[index]]
            if (record := get(hashes[index] + tag)) != NONE:
                return index, record
        return missing - 1, self._owner[rows[missing - 1]] if missing else NONE

    def _path(self, row: int) -> list[int]:
        """A row and those before it, the last first."""
        path, parent = [], self._residency.parent
        while row != NONE:
            path.append(row)
            row = parent(row)
        return path

    def _next_turn(self, record: int, path: list[int], now: float) -> int:
        """The record of a chain's next turn: the same one, unless the chain went on otherwise."""
        gap = now - self._last[record]
        self._density.returned(self._class[record], self._last[record], now)
        pause = math.log2(gap + 1)
        if self._turn[record] > 1:
            pause = _KEPT_PAUSE * self._pause[record] + (1 - _KEPT_PAUSE) * pause
        turn = self._turn[record] + 1
        if self._rows[record] and not self._is_whole(record, path):
            self._forget_names(record)
            self._last[record] = now
            record = self._new_record(now, 0)
        self._revive(record)
        self._last[record], self._stamp[record] = now, next(self._ticks)
        self._turn[record], self._pause[record] = turn, pause
        self._class[record] = later_class(turn, pause)
        return record

    def _is_whole(self, record: int, path: list[int]) -> bool:
        """Whether all blocks of a record are on the path."""
        owner, here = self._owner, 0
        for row in path:
            here += owner[row] == record
        return here == self._rows[record]

    def _use_heads(self, path: list[int], now: float) -> None:
        owner, seen = self._owner, NONE
        for row in path:
            record = owner[row]
            if record != seen and self._is_head[record]:
                self._use_head(record, now)
            seen = record

    def _use_head(self, head: int, now: float) -> None:
        last = self._last[head]
        self._density.returned(self._class[head], last, now)
        pause = math.log2(now - last + 1)
        self._pause[head] = _KEPT_PAUSE * self._pause[head] + (1 - _KEPT_PAUSE) * pause
        self._class[head] = head_class(self._pause[head])
        self._last[head], self._stamp[head] = now, next(self._ticks)

    def _branch(self, record: int, path: list[int], name: bytes, now: float) -> None:
        """A new chain begins with what belongs to another one: that is a head of its own."""
        self._use_heads(path, now)
        if self._is_head[record] and self._is_whole(record, path):
            if not path:
                self._use_head(record, now)
            return
        head = self._by_name.get(name) if name else NONE
        if head == NONE or not self._is_head[head]:
            pause = math.log2(now - self._last[record] + 1)
            head = self._new_record(now, head_class(pause))
            self._is_head[head] = True
            self._pause[head] = pause
        for row in path:
            if self._owner[row] == record or not self._is_head[self._owner[row]]:
                self._give(row, head)
        self._rename(head, [name] if name else [])
        self._let_go(head)

    def _take_over(self, path: list[int], record: int) -> None:
        """Blocks belong to the last request that used them, those of heads excepted."""
        owner, is_head = self._owner, self._is_head
        for row in path:
            if owner[row] != record and not is_head[owner[row]]:
                self._give(row, record)

    def _give(self, row: int, record: int) -> None:
        before = self._owner[row]
        if before == record:
            return
        self._revive(record)
        self._leave(row)
        self._owner[row] = record
        self._rows[record] += 1
        self._let_go(before)

    # Blocks.

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        record = self._by_name.get(block_hash + _tag(lane))
        if record == NONE and parent != NONE and not self._is_head[self._owner[parent]]:
            record = self._owner[parent]
        return ALWAYS if record == NONE else self._worth(record, self._clock())

    def _worth(self, record: int, now: float) -> float:
        return self._density.index[self._class[record]][age_bin(now - self._last[record])]

    def insert(self, row: int) -> None:
        if row >= len(self._owner):
            self._owner.extend([NONE] * (row + 1 - len(self._owner)))
        residency = self._residency
        lane, block_hash = residency.describe(row)
        tag = _tag(lane)
        record = self._by_name.get(block_hash + tag)
        if record == NONE or self._is_head[record]:
            record = self._neighbour(row)
        if record == NONE:
            record = self._new_record(self._clock(), first_class(1))
        self._revive(record)
        self._owner[row] = record
        self._rows[record] += 1
        self._is_open[record] = False
        length = residency.position(row) + 1
        if length > self._length[record]:
            self._length[record] = length
            self._rename(record, [block_hash + tag])

    def _neighbour(self, row: int) -> int:
        """The record of the block before, if this one alone continues it, or of the one after."""
        residency, owner = self._residency, self._owner
        parent = residency.parent(row)
        if parent != NONE and not self._is_head[owner[parent]] and residency.is_only_child(row):
            return owner[parent]
        child = residency.first_child[row]
        if child != NONE and residency.is_only_child(child) and not self._is_head[owner[child]]:
            return owner[child]
        return NONE

    def touch(self, rows: Sequence[int]) -> None:
        """Of blocks that nobody looked for before, it is a request."""
        if not rows:
            return
        record, now = self._owner[rows[-1]], self._clock()
        if self._is_open[record]:
            self._is_open[record] = False
        elif now - self._last[record] > _LOAD_SECONDS:
            path = self._path(rows[-1])
            self._use_heads(path, now)
            if not self._is_head[record]:
                self._take_over(path, self._next_turn(record, path, now))

    def keep(self, rows: Sequence[int]) -> None:
        pass

    def release(self, row: int) -> None:
        if not self._blocks.is_evictable(row):
            return
        record = self._owner[row]
        end = self._end[record]
        if end != NONE and end != row and self._blocks.is_evictable(end):
            record = self._split(row, record)
        self._end[record] = row
        if self._place[record] == NONE:
            self._place[record] = len(self._candidates)
            self._candidates.append(record)

    def remove(self, row: int) -> None:
        self._leave(row)
        record, self._owner[row] = self._owner[row], NONE
        self._let_go(record)

    # Evicting.

    def victim(self, worth: float = ALWAYS) -> int:
        chosen, evictable = self._chosen, self._blocks.is_evictable
        if chosen == NONE or self._end[chosen] == NONE or not evictable(self._end[chosen]):
            self._chosen = chosen = self._choose()
        if chosen == NONE or self._chosen_worth >= worth:
            return NONE
        return self._end[chosen]

    def _choose(self) -> int:
        """The least worth of a sample of the candidates; of equals the oldest."""
        candidates, end, last = self._candidates, self._end, self._last
        evictable, random_share, now = self._blocks.is_evictable, self._random, self._clock()
        index, classes = self._density.index, self._class
        best, best_worth, best_last = NONE, math.inf, math.inf
        left = _SAMPLE
        while left and candidates:
            left -= 1
            record = candidates[int(random_share() * len(candidates))]
            if not evictable(end[record]):
                self._withdraw(record)  # `release` brings it back
                left += best == NONE
                continue
            touched = last[record]
            value = index[classes[record]][age_bin(now - touched)]
            if value < best_worth or (value == best_worth and touched < best_last):
                best, best_worth, best_last = record, value, touched
        self._chosen_worth = best_worth
        return best

    def coldest(self, count: int) -> list[int]:
        now, rows = self._clock(), []
        for _ in range(min(2 * count, 2 * len(self._candidates))):
            record = self._candidates[int(self._random() * len(self._candidates))]
            if self._blocks.is_evictable(self._end[record]):
                rows.append((self._worth(record, now), self._end[record]))
        return list(dict.fromkeys(row for _, row in sorted(rows)))[:count]

    def rank(self, row: int) -> int:
        return self._stamp[self._owner[row]]

    # Records.

    def _new_record(self, now: float, chain_class: int) -> int:
        if not self._free:
            self._grow()
        record = self._free.pop()
        self._last[record], self._class[record] = now, chain_class
        self._turn[record], self._length[record], self._pause[record] = 1, 0, 0.0
        self._is_head[record] = self._is_open[record] = False
        self._stamp[record] = next(self._ticks)
        return record

    def _grow(self) -> None:
        first, count = len(self._last), _GROWTH_RECORDS
        zeros, nones = [0] * count, [NONE] * count
        for column in (self._turn, self._length, self._rows, self._stamp, self._name_bytes):
            column.extend(zeros)
        self._ghost.extend(zeros)
        for times in (self._last, self._pause):
            times.extend(zeros)
        for places in (self._end, self._place):
            places.extend(nones)
        self._class.extend([NO_CLASS] * count)
        self._is_head.extend(zeros)
        self._is_open.extend(zeros)
        self._names.extend(count)
        self._free.extend(range(first + count - 1, first - 1, -1))

    def _split(self, row: int, record: int) -> int:
        """A record of its own for a block that ends a branch of a chain."""
        other = self._new_record(self._last[record], self._class[record])
        self._turn[other], self._pause[other] = self._turn[record], self._pause[record]
        self._length[other] = self._residency.position(row) + 1
        self._stamp[other] = self._stamp[record]
        self._give(row, other)
        return other

    def _leave(self, row: int) -> None:
        """A block is no longer its record's."""
        record = self._owner[row]
        self._rows[record] -= 1
        if self._end[record] == row:
            self._withdraw(record)
            self._end[record] = NONE

    def _withdraw(self, record: int) -> None:
        """It is no candidate."""
        place, last = self._place[record], self._candidates[-1]
        if place != NONE:
            self._candidates[place] = last
            self._place[last] = place
            self._candidates.pop()
            self._place[record] = NONE

    def _let_go(self, record: int) -> None:
        """A record without blocks is remembered for a while, if it has names."""
        if self._rows[record] or self._ghost[record] or self._class[record] == NO_CLASS:
            return
        if not self._name_bytes[record]:
            self._free_record(record)
            return
        self._ghost_count += 1
        self._ghost[record] = self._ghost_count
        self._ghost_names += self._name_count(record)
        self._ghosts.append((record, self._ghost_count))
        most = _GHOST_KEYS_PER_BLOCK * len(self._residency)
        most = min(max(most, _FEWEST_GHOST_KEYS), _MOST_GHOST_KEYS)
        while self._ghost_names > most or len(self._ghosts) > most:
            oldest, number = self._ghosts.popleft()
            if self._ghost[oldest] == number:
                self._revive(oldest)
                self._free_record(oldest)

    def _revive(self, record: int) -> None:
        if self._ghost[record]:
            self._ghost[record] = 0
            self._ghost_names -= self._name_count(record)

    def _free_record(self, record: int) -> None:
        self._density.ended(self._class[record], self._last[record], self._clock())
        self._forget_names(record)
        self._class[record] = NO_CLASS
        self._free.append(record)

    # Names.

    def _names_of(self, keys: BlockKeys, depth: int, missing: int, tag: bytes) -> list[bytes]:
        """The first block to be stored, the last two; of new ones those at depths 1, 2, 4, ..."""
        count = len(keys.hashes)
        places = {max(0, count - 2), count - 1}
        if missing < count:
            places.add(missing)
        for power in range((keys.position + count).bit_length()):
            place = (1 << power) - 1 - keys.position
            if depth < place < count:
                places.add(place)
        return [keys.hashes[place] + tag for place in sorted(places)]

    def _rename(self, record: int, names: list[bytes]) -> None:
        """A record that is no ghost has other names now."""
        self._forget_names(record)
        by_name = self._by_name
        for name in names:
            by_name.put(name, record)
        self._names[record] = b"".join(names)
        self._name_bytes[record] = len(names[0]) if names else 0

    def _forget_names(self, record: int) -> None:
        names, size = self._names[record], self._name_bytes[record]
        for start in range(0, len(names), size or 1):
            name = names[start : start + size]
            if self._by_name.get(name) == record:
                self._by_name.pop(name)
        self._names[record] = b""
        self._name_bytes[record] = 0

    def _name_count(self, record: int) -> int:
        size = self._name_bytes[record]
        return len(self._names[record]) // size if size else 0


def _tag(lane: Lane) -> bytes:
    """Hashes of different lanes are different names."""
    return lane.group.to_bytes(4) + lane.shard.to_bytes(4) if lane != (0, 0) else b""

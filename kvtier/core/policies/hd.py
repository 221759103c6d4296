"""Hit-density chains."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import ALWAYS, Blocks, Context
from kvtier.core.policies.chains import Chains
from kvtier.core.policies.hit_density import (
    HitDensity,
    age_bin,
    first_class,
    head_class,
    later_class,
)
from kvtier.core.policies.request_path import (
    TAIL_ROWS,
    last_known,
    names_of,
    path_of,
    path_to,
    tag_of,
)
from kvtier.core.residency import NONE

_SAMPLE = 32
_REFRESH_REQUESTS = 200
_KEPT_PAUSE = 0.7
#: Who asked and has not loaded or stored anything since may ask again for so long.
_OPEN_SECONDS = 60.0
#: A load in parts is one use.
_LOAD_SECONDS = 2.0


#: Consecutive blocks of one record.
_Stretch = tuple[int, list[int]]


class Record(NamedTuple):
    """A chain: how often it was asked for, its blocks here, and whether others share it."""

    turn: int
    block_count: int
    is_head: bool


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

    def __init__(self, blocks: Blocks, context: Context) -> None:
        self._blocks = blocks
        self._residency = blocks.residency
        self._ticks = context.ticks
        self._clock = context.clock
        self._random = context.rng.random
        self._density = HitDensity()
        self._now = -math.inf
        self._requests = 0
        self._owner = array("i")  # by row
        self._chains = Chains(context.ticks, self._forgotten)
        self._candidates = array("i")
        self._chosen = NONE
        self._chosen_worth = ALWAYS

    # Requests.

    def ask(self, keys: BlockKeys) -> None:
        for _ in self.asking(keys):
            pass

    def asking(self, keys: BlockKeys) -> Generator[None]:
        """Looks from the end for what is known, step by step; the rest is done in one turn."""
        if not self._is_open(keys):
            last = yield from last_known(self._residency, self._chains, keys)
            if not self._is_open(keys):  # nor has somebody else asked for it meanwhile
                self._ask(keys, last)

    def _is_open(self, keys: BlockKeys) -> bool:
        """Whether somebody asked for it lately, and has not loaded or stored anything of it."""
        chains = self._chains
        known = chains.find(keys.hashes[-1] + tag_of(keys.lane))
        if known == NONE or not chains.is_open[known]:
            return False
        return self._time() - chains.last[known] < _OPEN_SECONDS

    def _ask(self, keys: BlockKeys, last: int) -> None:
        hashes, chains = keys.hashes, self._chains
        tag, now = tag_of(keys.lane), self._time()
        self._chosen = NONE
        self._requests += 1
        if self._requests % _REFRESH_REQUESTS == 0:
            self._density.refresh(chains.kind, chains.last, now, _REFRESH_REQUESTS)
        missing, path = path_of(self._residency, keys)
        depth, record = self._deepest(keys, missing, last)
        if record == NONE and path:
            record = self._owner[path[-1]]
        stretches = self._stretches(path)
        covered = keys.position + depth + 1
        if record != NONE and not chains.is_head[record] and self._continues(record, covered):
            self._use_heads(stretches, now)
            record = self._next_turn(record, stretches, now)
        else:
            if record != NONE:
                name = hashes[depth] + tag if depth >= 0 else b""
                self._branch(record, stretches, name, now)
                stretches = self._stretches(path)
            record = chains.new(now, first_class(len(hashes) - 1 - depth))
        self._take_over(stretches, record)
        chains.is_open[record] = True
        chains.length[record] = keys.position + len(hashes)
        chains.rename(record, names_of(keys, depth, missing))
        chains.settle(record)

    def _continues(self, record: int, covered: int) -> bool:
        return covered >= 2 and 2 * covered >= self._chains.length[record]

    def _deepest(self, keys: BlockKeys, missing: int, last: int) -> tuple[int, int]:
        """The index of the last known block, and its record; what was known may be gone by now."""
        for index in (max(last, missing - 1), missing - 1):
            if index >= 0:
                row = self._residency.find(keys.lane, keys.hashes[index])
                name = keys.hashes[index] + tag_of(keys.lane)
                record = self._chains.find(name) if row == NONE else self._owner[row]
                if record != NONE:
                    return index, record
        return missing - 1, NONE

    def _stretches(self, path: list[int]) -> list[_Stretch]:
        """The path, cut where the record changes."""
        owner = self._owner
        return [(record, list(rows)) for record, rows in groupby(path, owner.__getitem__)]

    def _is_whole(self, record: int, stretches: list[_Stretch]) -> bool:
        """Whether all blocks of a record are on the path; of a long one, whether its end is."""
        mine = [rows for each, rows in stretches if each == record]
        here = sum(map(len, mine))
        if here < min(TAIL_ROWS, self._chains.block_count[record]):
            return False
        if here == self._chains.block_count[record]:
            return True
        last, owner = mine[-1][-1], self._owner
        return all(owner[child] != record for child in self._residency.children(last))

    def _next_turn(self, record: int, stretches: list[_Stretch], now: float) -> int:
        """The record of a chain's next turn: the same one, unless the chain went on otherwise."""
        chains = self._chains
        self._density.returned(chains.kind[record], chains.last[record], now)
        pause = math.log2(now - chains.last[record] + 1)
        if chains.turn[record] > 1:
            pause = _KEPT_PAUSE * chains.pause[record] + (1 - _KEPT_PAUSE) * pause
        turn = chains.turn[record] + 1
        if chains.block_count[record] and not self._is_whole(record, stretches):
            chains.rename(record, ())
            chains.last[record] = now
            record = chains.new(now, 0)
        chains.last[record], chains.stamp[record] = now, next(self._ticks)
        chains.turn[record], chains.pause[record] = turn, pause
        chains.kind[record] = later_class(turn, pause)
        return record

    def _use_heads(self, stretches: list[_Stretch], now: float) -> None:
        for record, _ in stretches:
            if self._chains.is_head[record]:
                self._use_head(record, now)

    def _use_head(self, head: int, now: float) -> None:
        chains = self._chains
        self._density.returned(chains.kind[head], chains.last[head], now)
        pause = math.log2(now - chains.last[head] + 1)
        pause = _KEPT_PAUSE * chains.pause[head] + (1 - _KEPT_PAUSE) * pause
        chains.pause[head], chains.kind[head] = pause, head_class(pause)
        chains.last[head], chains.stamp[head] = now, next(self._ticks)

    def _branch(self, record: int, stretches: list[_Stretch], name: bytes, now: float) -> None:
        """A new chain begins with what belongs to another one: that is a head of its own."""
        chains = self._chains
        self._use_heads(stretches, now)
        if chains.is_head[record] and self._is_whole(record, stretches):
            if not stretches:
                self._use_head(record, now)
            return
        head = chains.find(name) if name else NONE
        if head == NONE or not chains.is_head[head]:
            pause = math.log2(now - chains.last[record] + 1)
            head = chains.new(now, head_class(pause))
            chains.is_head[head] = True
            chains.pause[head] = pause
        for each, rows in stretches:
            if each == record or not chains.is_head[each]:
                self._give(rows, head)
        chains.rename(head, [name] if name else [])
        chains.settle(head)

    def _take_over(self, stretches: list[_Stretch], record: int) -> None:
        """Blocks belong to the last request that used them, those of heads excepted."""
        for each, rows in stretches:
            if each != record and not self._chains.is_head[each]:
                self._give(rows, record)

    def _give(self, rows: list[int], record: int) -> None:
        """Blocks of another record are this one's now."""
        for row in rows:
            before = self._owner[row]
            was_end = self._chains.end[before] == row
            if before != record:
                self._chains.add_block(record)
                self._owner[row] = record
                self._leave(row, before)
            if was_end:
                self.release(row)

    # Blocks.

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        record = self._chains.find(block_hash + tag_of(lane))
        if record == NONE and parent != NONE and not self._chains.is_head[self._owner[parent]]:
            record = self._owner[parent]
        return ALWAYS if record == NONE else self._worth(record, self._time())

    def _worth(self, record: int, now: float) -> float:
        age = now - self._chains.last[record]
        return self._density.index[self._chains.kind[record]][age_bin(age)]

    def insert(self, row: int) -> None:
        if row >= len(self._owner):
            self._owner.extend([NONE] * (row + 1 - len(self._owner)))
        chains, residency = self._chains, self._residency
        lane, block_hash = residency.describe(row)
        tag = tag_of(lane)
        record = chains.find(block_hash + tag)
        if record == NONE or chains.is_head[record]:
            record = self._neighbour(row)
        if record == NONE:
            record = chains.new(self._time(), first_class(1))
        self._owner[row] = record
        chains.add_block(record)
        length = residency.position(row) + 1
        if length > chains.length[record]:
            chains.length[record] = length
            chains.rename(record, [block_hash + tag])

    def _neighbour(self, row: int) -> int:
        """The record of the block before, if this one alone continues it, or of the one after."""
        residency = self._residency
        before, after = residency.parent(row), residency.first_child[row]
        for near, child in ((before, row), (after, after)):
            if near != NONE and residency.is_only_child(child):
                record = self._owner[near]
                if not self._chains.is_head[record]:
                    return record
        return NONE

    def touch(self, rows: Sequence[int]) -> None:
        """Of blocks that nobody looked for before, it is a request."""
        if not rows:
            return
        chains, record, now = self._chains, self._owner[rows[-1]], self._time()
        if chains.is_open[record]:
            chains.is_open[record] = False
        elif now - chains.last[record] > _LOAD_SECONDS:
            stretches = self._stretches(list(rows))
            self._use_heads(stretches, now)
            if not chains.is_head[record]:
                self._take_over(stretches, self._next_turn(record, stretches, now))

    def keep(self, rows: Sequence[int]) -> None:
        if rows:  # what was looked for has been computed
            self._chains.is_open[self._owner[rows[-1]]] = False

    def release(self, row: int) -> None:
        evictable, chains = self._blocks.is_evictable, self._chains
        if not evictable(row):
            return
        record = self._owner[row]
        end = chains.end[record]
        if end not in (NONE, row) and evictable(end):
            record = self._split(row, record)
        chains.end[record] = row
        if chains.place[record] == NONE:
            chains.place[record] = len(self._candidates)
            self._candidates.append(record)

    def remove(self, row: int) -> None:
        record, self._owner[row] = self._owner[row], NONE
        self._leave(row, record)

    def mark(self, row: int) -> None:
        """Many sequences share what ends here: it is a head before the second of them comes."""
        record = self._owner[row]
        if not self._chains.is_head[record]:
            now = self._time()
            stretches = self._stretches(path_to(self._residency, row))
            name = self._residency.describe(row)
            self._branch(record, stretches, name[1] + tag_of(name[0]), now)

    # Evicting.

    def victim(self, worth: float = ALWAYS) -> int:
        end, evictable = self._chains.end, self._blocks.is_evictable
        chosen = self._chosen
        if chosen == NONE or end[chosen] == NONE or not evictable(end[chosen]):
            self._chosen = chosen = self._choose()
        if chosen == NONE or self._chosen_worth > worth:
            return NONE  # what is here is worth more
        return end[chosen]

    def _choose(self) -> int:
        """The least worth of a sample of the candidates; of equals the oldest."""
        candidates, end, last = self._candidates, self._chains.end, self._chains.last
        evictable, random_share, now = self._blocks.is_evictable, self._random, self._time()
        index, classes = self._density.index, self._chains.kind
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
        now, rows = self._time(), []
        for _ in range(min(2 * count, 2 * len(self._candidates))):
            record = self._candidates[int(self._random() * len(self._candidates))]
            if self._blocks.is_evictable(self._chains.end[record]):
                rows.append((self._worth(record, now), self._chains.end[record]))
        return list(dict.fromkeys(row for _, row in sorted(rows)))[:count]

    def expected(self, within_seconds: float, least_chance: float, count: int) -> list[int]:
        """Ends of chains that come back within a time with at least this probability."""
        chains, density, now = self._chains, self._density, self._time()
        found: dict[int, float] = {}
        for _ in range(min(_SAMPLE, 2 * len(self._candidates))):
            record = self._candidates[int(self._random() * len(self._candidates))]
            if self._blocks.is_evictable(chains.end[record]):
                age = now - chains.last[record]
                chance = density.chance(chains.kind[record], age, within_seconds)
                if chance >= least_chance:
                    found[chains.end[record]] = chance
        return sorted(found, key=lambda row: -found[row])[:count]

    def rank(self, row: int) -> int:
        return self._chains.stamp[self._owner[row]]

    # Records.

    def _split(self, row: int, record: int) -> int:
        """A record of its own for a block that ends a branch of a chain."""
        chains = self._chains
        other = chains.new(chains.last[record], chains.kind[record])
        chains.turn[other], chains.pause[other] = chains.turn[record], chains.pause[record]
        chains.length[other] = self._residency.position(row) + 1
        chains.stamp[other] = chains.stamp[record]
        self._give([row], other)
        return other

    def _leave(self, row: int, record: int) -> None:
        """A block is no longer its chain's."""
        if self._chains.end[record] == row:
            self._withdraw(record)
            self._chains.end[record] = NONE
        self._chains.drop_block(record)

    def _withdraw(self, record: int) -> None:
        """It is no candidate."""
        places, place = self._chains.place, self._chains.place[record]
        if place != NONE:
            last = self._candidates[-1]
            self._candidates[place] = last
            places[last] = place
            self._candidates.pop()
            places[record] = NONE

    def _forgotten(self, record: int) -> None:
        self._density.ended(self._chains.kind[record], self._chains.last[record], self._time())

    def records(self) -> Iterator[Record]:
        """Chains that are here or remembered; for tests, and for the curious."""
        chains = self._chains
        for each in chains:
            yield Record(chains.turn[each], chains.block_count[each], bool(chains.is_head[each]))

    @property
    def remembered_names(self) -> int:
        """By which chains without blocks are known."""
        return self._chains.departed_names

    def _time(self) -> float:
        """Seconds, which never run backwards."""
        self._now = max(self._now, self._clock())
        return self._now

    def check_integrity(self) -> None:
        """Raises AssertionError if books disagree."""
        self._chains.check_integrity()
        rows = Counter(each for each in self._owner if each != NONE)
        assert sum(rows.values()) == len(self._residency), (rows, len(self._residency))
        for record in self._chains:
            assert self._chains.block_count[record] == rows[record], record
            end, place = self._chains.end[record], self._chains.place[record]
            assert end == NONE or self._owner[end] == record, record
            assert place == NONE or (self._candidates[place] == record and end != NONE), record

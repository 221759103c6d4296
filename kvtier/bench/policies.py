"""`kvtier bench policies`: what eviction policies cost, over residency alone."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from kvtier.bench.process import in_worker_process
from kvtier.core.block import BlockKeys, Lane
from kvtier.core.policies.base import NEVER, Context
from kvtier.core.policies.named import POLICIES, NewPolicy, find_policy
from kvtier.core.residency import NONE, Residency
from kvtier.daemon import tune_interpreter

SIZES = (10_000, 100_000, 1_000_000)

_CHAIN = 16
_TURN = 4
_HASH_BYTES = 32
_SHARE_NEW = 0.5
_SECONDS_PER_REQUEST = 0.05

_Chain = tuple[bytes, ...]


def run(
    sizes: Sequence[int] = SIZES,
    seconds: float = 2.0,
    on_result: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Measures each policy at each size, in a process of its own."""
    results = []
    for name, blocks in itertools.product(POLICIES, sizes):
        results.append(in_worker_process(measure, policy=name, blocks=blocks, seconds=seconds))
        on_result()
    return {"results": results}


def measure(policy: str, blocks: int, seconds: float) -> dict[str, Any]:
    """Fills a tier, then asks, loads, stores and evicts for so long."""
    tune_interpreter()
    load = _Load(find_policy(policy), blocks)
    while len(load.residency) < blocks:
        load.store(load.next_chain())
    for _ in range(blocks // _CHAIN // 4):
        load.request()
    load.operations = 0
    spent = 0.0
    while spent < seconds:
        chains = [load.next_chain() for _ in range(64)]
        start = time.thread_time()
        for chain in chains:
            load.request_for(chain)
        spent += time.thread_time() - start
    return {
        "policy": policy,
        "blocks": blocks,
        "operations_per_second": load.operations / spent,
    }


class _Load:
    """A tier without slots, and requests: half of them first turns, half the next of a chain.

    An operation is one block asked for, used, stored or evicted. Time passes as if there were 20
    requests a second.
    """

    def __init__(self, new_policy: NewPolicy, blocks: int) -> None:
        self.residency = Residency()
        self.operations = 0
        self._blocks = blocks
        self._rng = random.Random(0)
        self._now = 0.0
        self._in_use: Sequence[int] = ()
        self._policy = new_policy(
            self, Context(itertools.count(1), lambda: self._now, random.Random(1))
        )
        self._chains: list[_Chain] = []
        self._place = 0

    def is_evictable(self, row: int) -> bool:
        residency = self.residency
        return (
            residency.slot[row] != NONE
            and residency.first_child[row] == NONE
            and row not in self._in_use
        )

    def next_chain(self) -> _Chain:
        """A new chain, or a recent one with another turn."""
        rng, recent = self._rng, self._chains
        if not recent or rng.random() < _SHARE_NEW:
            chain = self._hashes(_CHAIN)
        else:
            chain = recent[int(rng.random() * len(recent))]
            if len(chain) > 2 * _CHAIN:
                chain = chain[:_CHAIN]
            chain += self._hashes(_TURN)
        if len(recent) < self._blocks // _CHAIN // 2:
            recent.append(chain)
        else:
            self._place = (self._place + 1) % len(recent)
            recent[self._place] = chain
        return chain

    def _hashes(self, count: int) -> _Chain:
        return tuple(self._rng.randbytes(_HASH_BYTES) for _ in range(count))

    def request(self) -> None:
        self.request_for(self.next_chain())

    def request_for(self, chain: _Chain) -> None:
        """As an agent does: look up, load what is here, store the rest."""
        self._now += _SECONDS_PER_REQUEST
        self._policy.ask(BlockKeys(Lane(), chain))
        rows = self.residency.find_many(Lane(), chain)
        hits = rows.index(NONE) if NONE in rows else len(rows)
        if hits:
            self._policy.touch(rows[:hits])
        self.operations += len(chain) + hits
        if hits < len(chain):
            self.store(chain, hits, rows[hits - 1] if hits else NONE)

    def store(self, chain: _Chain, first: int = 0, parent: int = NONE) -> None:
        residency, policy, lane = self.residency, self._policy, Lane()
        worth = policy.worth(lane, chain[first], parent)
        if worth <= NEVER:
            return
        before = chain[first - 1] if first else b""
        for index in range(first, len(chain)):
            self._in_use = (parent,)
            if len(residency) >= self._blocks and not self._evict(worth):
                break
            block_hash = chain[index]
            if residency.find(lane, block_hash) == NONE:
                parent = residency.insert(lane, block_hash, before, index, 1)
                policy.insert(parent)
                self.operations += 1
            before = block_hash
        self._in_use = ()
        if parent != NONE and residency.first_child[parent] == NONE:
            policy.release(parent)

    def _evict(self, worth: float) -> bool:
        row = self._policy.victim(worth)
        if row == NONE:
            return False
        self._policy.remove(row)
        parent = self.residency.remove(row)
        if parent != NONE:
            self._policy.release(parent)
        self.operations += 1
        return True

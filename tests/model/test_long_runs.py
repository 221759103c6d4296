"""What policies and the history keep stays bounded, however long they run.

`KVTIER_OPERATIONS=10000000 pytest tests/model/test_long_runs.py` runs for minutes.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import pytest

from kvtier.agent.operating.history import History
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.cause import Cause
from kvtier.core.policies.named import ADMISSIONS, POLICIES, find_policy
from kvtier.core.residency import NONE
from tests.unit.core.policy_tier import PolicyTier

#: A block asked for, used, stored or evicted is one.
OPERATIONS = int(os.environ.get("KVTIER_OPERATIONS", "150000"))
#: After so many of them everything has been forgotten once: of long runs also the beginnings of
#: requests, of which few are new.
WARM = min(max(75_000, OPERATIONS // 2), 1_000_000)
BLOCKS = 256
RULES = [(name, "always") for name in POLICIES] + [
    ("lru", rule) for rule in ADMISSIONS if rule != "always"
]
_NO_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def bytes_of(root: object, without: list[object]) -> int:
    """All that hangs on an object."""
    seen, left, size = {id(each) for each in without}, [root], 0
    while left:
        each = left.pop()
        if id(each) not in seen and not isinstance(each, _NO_STATE):
            seen.add(id(each))
            size += sys.getsizeof(each)
            left += gc.get_referents(each)
    return size


def requests(rng: random.Random) -> Iterator[BlockKeys]:
    """Half are new chains, of which some begin as all others; half go on with one of the last."""
    common = [rng.randbytes(16) for _ in range(2)]
    recent: list[list[bytes]] = []
    while True:
        if len(recent) < 40 or rng.random() < 0.5:
            hashes = (common if rng.random() < 0.3 else []) + [rng.randbytes(16)]
        else:
            hashes = recent.pop(rng.randrange(len(recent)))[:24]
        hashes = hashes + [rng.randbytes(16) for _ in range(rng.randrange(1, 8))]
        recent = [*recent[-39:], hashes]
        yield BlockKeys(Lane(), tuple(hashes))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("policy", "admission"), RULES)
def test_a_policy_keeps_no_more_the_longer_it_runs(policy: str, admission: str) -> None:
    """Also when the clock jumps, both ways."""
    rng, now, operations, most = random.Random(0), 0.0, 0, 0
    tier = PolicyTier(find_policy(policy, admission), BLOCKS, lambda: now)
    for number, keys in enumerate(requests(rng)):
        now += 0.5
        if number % 5000 == 4999:
            now += rng.choice([-3600.0, 86400.0])
        for _ in range(1 + (rng.random() < 0.2)):
            tier.policy.ask(keys)
        hits = tier.load(keys)
        operations += len(keys.hashes) + hits + 2 * len(tier.store(keys))
        if not most and operations >= WARM:
            most = bytes_of(tier.policy, [tier, tier.residency])
        if operations >= OPERATIONS:
            break
    assert len(tier.residency) <= BLOCKS
    assert bytes_of(tier.policy, [tier, tier.residency]) <= 1.25 * most
    while tier.evict() != NONE:
        pass
    assert not len(tier.residency)


def test_the_history_keeps_no_more_the_longer_it_runs() -> None:
    rng, now = random.Random(0), 1e9
    history = History(1024, lambda: now)
    size_bytes = bytes_of(history, [])
    for number in range(OPERATIONS // 4):
        now += rng.choice([0.01, -5.0, 60.0]) if number % 100 == 0 else 0.01
        history.note(1, Lane(), rng.randbytes(16), Tier.HOST, Cause.EVICTED)
    assert bytes_of(history, []) <= size_bytes + 1024
    assert history.entry_count <= history.capacity

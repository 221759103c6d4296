"""Blocks of slower tiers that an operator wants in HOST, or that a policy expects to be used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.serving.prefetching import Prefetching, Purpose
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.turns import READ_SLICE
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.policies.expecting import expected
from kvtier.core.residency import NONE
from kvtier.errors import InvalidRequestError
from kvtier.tiers.size_class import SizeClass

_EVERYTHING = frozenset(Tier)
#: Chains of one size class at one time.
_CHAINS = 8
_LONGEST_CHAIN = 8192
_MOST_REMEMBERED = 4096


@dataclass(frozen=True)
class WarmingOptions:
    """Chains that come back within `within_seconds` with a probability of `least_chance` are
    brought, if `is_predictive`; it is asked for them every `interval_seconds`."""

    is_predictive: bool = False
    within_seconds: float = 30.0
    least_chance: float = 0.5
    interval_seconds: float = 1.0


class Warming:
    """By request, and ahead of the next turn of a session that the policy of DISK expects.

    What is expected comes after all else that is prefetched, and once within the time in which it
    is expected: what was in vain is not tried again and again.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        promotion: Promotion,
        prefetching: Prefetching,
        options: WarmingOptions | None = None,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.options = options or WarmingOptions()
        self._namespaces = namespaces
        self._promotion = promotion
        self._prefetching = prefetching
        self._clock = clock
        #: When a block that ends a chain is forgotten again; the oldest first.
        self._tried: OrderedDict[tuple[SizeClass, bytes], float] = OrderedDict()

    async def warm(
        self, selector: str, keys_of: Callable[[Namespace], BlockKeys]
    ) -> tuple[int, int]:
        """Begins to bring a prefix; how many leading blocks are in HOST or on their way there, and
        how many are there.

        Raises InvalidRequestError if the selector names several namespaces, NotFoundError for none.
        """
        [namespace, *others] = self._namespaces.select(selector)
        if others:
            raise InvalidRequestError(
                f"namespace {selector!r} has {1 + len(others)} layouts; name one of "
                + ", ".join(each.label for each in (namespace, *others))
            )
        keys = keys_of(namespace)
        await self._promotion.learn(namespace, keys.lane, keys.hashes, _EVERYTHING, is_prefix=True)
        accepted = await self._prefetching.ask(namespace, keys)
        rows = namespace.groups[keys.lane.group].find_many(keys.lane, keys.hashes)
        return accepted, [*rows, NONE].index(NONE)

    async def run(self) -> None:
        """Warms what is expected, now and then, until it is cancelled."""
        while True:
            await asyncio.sleep(self.options.interval_seconds)
            await self.warm_expected()

    async def warm_expected(self) -> None:
        """Asks for the chains of which only DISK has the end."""
        for namespace in list(self._namespaces):
            for disk in namespace.classes_of(Tier.DISK):
                options = self.options
                rows = expected(disk.policy, options.within_seconds, options.least_chance, _CHAINS)
                for lane, end in [disk.residency.describe(row) for row in rows]:
                    await self._warm_chain(namespace, disk, lane, end)
                await asyncio.sleep(0)

    async def _warm_chain(
        self, namespace: Namespace, disk: SizeClass, lane: Lane, end: bytes
    ) -> None:
        host = namespace.groups[lane.group]
        if host.residency.find(lane, end) != NONE or self._has_tried(disk, end):
            return
        keys = await _chain(disk, lane, end)
        if keys is None:
            return
        until = self._clock() + self.options.within_seconds
        self._tried[disk, end] = until
        await self._prefetching.ask(
            namespace, keys, Purpose.EXPECTED, is_waiting=lambda: self._clock() < until
        )

    def _has_tried(self, disk: SizeClass, end: bytes) -> bool:
        now, tried = self._clock(), self._tried
        while tried and (len(tried) >= _MOST_REMEMBERED or next(iter(tried.values())) <= now):
            tried.popitem(last=False)
        return (disk, end) in tried


async def _chain(disk: SizeClass, lane: Lane, end: bytes) -> BlockKeys | None:
    """The blocks of DISK up to one, the last 8,192 of them; None if they change meanwhile."""
    residency, hashes = disk.residency, list[bytes]()
    row = residency.find(lane, end)
    while row != NONE and len(hashes) < _LONGEST_CHAIN:
        first, key_hash = row, residency.describe(row)[1]
        hashes.append(key_hash)
        if len(hashes) % READ_SLICE == 0:
            await asyncio.sleep(0)
            if residency.describe(row)[1] is not key_hash:
                return None
        row = residency.parent(row)
    if not hashes:
        return None
    key = residency.key(first)
    return BlockKeys(lane, tuple(reversed(hashes)), key.parent_hash, key.position)

"""What the agent has of a request's prefix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from kvtier.client.client import Client
from kvtier.client.namespace import Lookup, Namespace, Place
from kvtier.core.block import Match, Tier
from kvtier.core.break_even import worth_waiting
from kvtier.errors import KvtierError
from kvtier.integrations.vllm.groups import Group, aligned_tokens, longest_end
from kvtier.integrations.vllm.metrics import KvtierStats
from kvtier.integrations.vllm.prefill_speed import PrefillSpeed
from kvtier.integrations.vllm.reconnecting import call
from kvtier.integrations.vllm.request_state import Found
from kvtier.integrations.vllm.settings import Settings

log = logging.getLogger("vllm.kvtier")

#: Beyond these a call would be refused; the beginning of a text is what is shared anyway.
MOST_BLOCKS = 8192


class Finder:
    """Looks up in the calling thread: one call for each group, held for `hold_seconds`.

    The calls tell the agent how fast the engine computes.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        settings: Settings,
        client: Client,
        speed: PrefillSpeed,
        stats: KvtierStats,
        clock: Callable[[], float],
    ) -> None:
        self._step_tokens = aligned_tokens(groups)
        self._hash_tokens = groups[0].block_tokens // groups[0].hashes_per_block
        self._whole = [group for group in groups if not group.window_tokens]
        self._windows = [group for group in groups if group.window_tokens]
        self._settings = settings
        self._client = client
        self._speed = speed
        self._stats = stats
        self._clock = clock
        self._failing = False

    def find(self, namespace: Namespace, request: Any, first: int) -> Found:
        """What is worth loading after the first `first` tokens; leaves a token to be computed.

        What the agent would bring later than the engine computes it is not. A lookup that fails
        counts as not cached.
        """
        started = self._clock()
        expires = started + self._settings.hold_seconds / 2
        most = first + MOST_BLOCKS * self._hash_tokens
        limit = min(request.num_tokens - 1, most) // self._step_tokens * self._step_tokens
        if limit - first < self._settings.min_load_tokens or request.skip_reading_prefix_cache:
            return Found(first, first, expires)
        try:
            found = call(
                self._client,
                self._settings.lookup_timeout_seconds,
                lambda: self._ask(namespace, request, first, limit, expires),
            )
        except KvtierError as error:
            self._failed(error)
            return Found(first, first, expires)
        finally:
            self._stats.add("lookups", 1)
            self._stats.add("lookup_seconds", self._clock() - started)
        self._failing = False
        return found

    def _ask(
        self,
        namespace: Namespace,
        request: Any,
        first: int,
        end: int,
        expires: float,
    ) -> Found:
        holds: dict[int, int] = {}
        tiers: tuple[Tier, ...] = ()
        for group in self._whole:
            if end > first:
                answer = self._lookup(namespace, group, request, first, end, Match.PREFIX)
                worth = self._worth(namespace, group, answer)
                end = min(end, first + worth * group.block_tokens)
                end -= (end - first) % self._step_tokens
                holds[group.number] = answer.hold_id
                tiers = tiers or tuple(tier for tier, count in answer.runs for _ in range(count))
        present: dict[int, tuple[bool, ...]] = {}
        for group in self._windows:
            if end > first:
                answer = self._lookup(namespace, group, request, first, end, Match.PRESENCE)
                present[group.number] = answer.present
                holds[group.number] = answer.hold_id
        end = longest_end(
            self._windows,
            self._step_tokens,
            first,
            end,
            lambda group, block: present[group.number][block - first // group.block_tokens],
        )
        return Found(first, end, expires, tiers, holds)

    def _worth(self, namespace: Namespace, group: Group, answer: Lookup) -> int:
        """How many blocks of a group; groups share the time by their bytes."""
        sizes = namespace.spec.block_bytes
        share = sizes[group.number] / sum(sizes)
        counts = [count for _, count in answer.runs]
        return worth_waiting(
            zip(counts, answer.ready_after_seconds, strict=True),
            share * self._speed.likely_seconds(group.block_tokens),
        )

    def _lookup(
        self,
        namespace: Namespace,
        group: Group,
        request: Any,
        first: int,
        end: int,
        match: Match,
    ) -> Lookup:
        start, stop = first // group.block_tokens, end // group.block_tokens
        hashes: Sequence[bytes] = request.block_hashes
        shards = namespace.spec.shards
        return namespace.lookup(
            group.hashes(hashes, start, stop),
            place=Place(group.number, 0, group.parent(hashes, start), start),
            match=match,
            shards=range(shards) if shards > 1 else (),
            hold_seconds=self._settings.hold_seconds,
            compute_seconds_per_block=self._speed.seconds(namespace.spec.block_tokens),
            request_id=request.request_id,
        )

    def _failed(self, error: KvtierError) -> None:
        """Logs the first failure in a row."""
        self._stats.add("failures", 1, "lookup")
        level = logging.DEBUG if self._failing else logging.WARNING
        log.log(level, "kvtier: prompts are computed, nothing is loaded: %s", error)
        self._failing = True

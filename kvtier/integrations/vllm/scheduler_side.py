"""The connector in the scheduler's process: what is cached, what is to be loaded and stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.client.client import Client
from kvtier.client.namespace import Namespace
from kvtier.core.block import Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.integrations.vllm.groups import Group, aligned_tokens, groups_of
from kvtier.integrations.vllm.guarding import guarded
from kvtier.integrations.vllm.identity import namespace_fields
from kvtier.integrations.vllm.lookup import MOST_BLOCKS, Finder
from kvtier.integrations.vllm.metrics import KvtierStats
from kvtier.integrations.vllm.overwriting import overwritten
from kvtier.integrations.vllm.plan import Blocks, Load, Plan, Store, WorkerLayout
from kvtier.integrations.vllm.prefetcher import Prefetcher
from kvtier.integrations.vllm.prefill_speed import PrefillSpeed
from kvtier.integrations.vllm.request_state import Found, RequestState
from kvtier.integrations.vllm.settings import Settings

log = logging.getLogger("vllm.kvtier")

#: Blocks of a request that decodes are stored so many at a time, and at its end.
_DECODED_BLOCKS = 16
#: The share of free blocks beyond which those of finished requests are not used again soon.
_ROOM = 0.25
_SOURCES = {Tier.HOST: CacheHitSource.HOST, Tier.DISK: CacheHitSource.DISK}


class SchedulerSide:
    """Not thread-safe: vLLM's scheduler calls it from one thread.

    Of the agent it asks what is cached, and waits at most `lookup_timeout_seconds`; everything else
    is left to the workers. Raises ValueError for a model whose state cannot be kept.
    """

    def __init__(
        self,
        config: VllmConfig,
        kv_cache: KVCacheConfig,
        settings: Settings,
        client: Client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.kv_transfer_config is not None
        self._config = config
        self._kv_cache = kv_cache
        self._settings = settings
        self._client = client
        self._clock = clock
        self._loads = config.kv_transfer_config.is_kv_consumer
        self._stores = config.kv_transfer_config.is_kv_producer
        self._hash_tokens = kv_cache.hash_block_size or config.cache_config.block_size
        self._groups = groups_of(kv_cache, self._hash_tokens)
        self._step_tokens = aligned_tokens(self._groups)
        self._whole = [group for group in self._groups if not group.window_tokens]
        self._layouts: Sequence[WorkerLayout] = ()
        self._reset = ""
        self._fields: dict[str, Any] | None = None
        self._namespace: Namespace | None = None
        self._requests: dict[str, RequestState] = {}
        self._pool: Any = None
        self._arrived: list[RequestState] = []
        self._new_loads: list[Load] = []
        self._new_stores: list[Store] = []
        self._finished: set[str] = set()
        self._prefetcher = Prefetcher()
        self._stats = KvtierStats()
        self._speed = PrefillSpeed(self._stats, clock)
        self._finder = Finder(self._groups, settings, client, self._speed, self._stats, clock)

    def set_layouts(self, layouts: Iterable[WorkerLayout]) -> None:
        """What all workers say of themselves; nothing is looked up before."""
        self._layouts = tuple(layouts)

    def reset(self, token: str) -> None:
        """The weights may be others: what is stored and loaded from now on is told apart."""
        self._reset = token
        self._fields, self._namespace = None, None

    def bind(self, pool: Any) -> None:
        """vLLM's blocks, to know how many are free."""
        self._pool = pool

    @guarded(None)
    def add(self, request: Any) -> None:
        """A request has come."""
        state = RequestState(request, [0] * len(self._groups))
        self._requests[request.request_id] = state
        self._arrived.append(state)

    @guarded(0)
    def matched_tokens(self, request: Any, computed: int) -> int:
        """How many tokens after the first `computed` can be loaded."""
        state = self._requests.get(request.request_id)
        if state is None or not self._loads or not self._is_ready():
            return 0
        assert self._namespace is not None
        state.asked = True
        state.notice_preemption()
        if state.load_tried:  # it failed: what is left is to compute
            return 0
        found = state.found
        if found is None or found.first != computed or self._clock() > found.expires:
            state.found = found = self._finder.find(self._namespace, request, computed)
        tokens = found.end - computed
        return tokens if tokens >= self._settings.min_load_tokens else 0

    def allocated(self, request: Any, ids: Sequence[Sequence[int]], tokens: int) -> None:
        """A request was given blocks, of whose tokens the last `tokens` are to be loaded."""
        state = self._requests.get(request.request_id)
        if not tokens or state is None or state.found is None:
            return
        found, state.found = state.found, None
        end = found.first + tokens
        wanted = []
        for group in self._groups:
            stop = end // group.block_tokens
            first = max(found.first // group.block_tokens, group.first_needed(stop))
            hold_id = found.holds.get(group.number, 0)
            blocks = _blocks(group, request.block_hashes, ids[group.index], first, stop, hold_id)
            if blocks.hashes:
                wanted.append(blocks)
        budget_seconds = self._speed.likely_seconds(tokens)
        is_slower = any(tier > Tier.HOST for tier in found.tiers)
        self._new_loads.append(Load(request.request_id, wanted, budget_seconds, is_slower))
        state.loading = state.load_tried = True
        self._count_hits(state, found, tokens)

    def _count_hits(self, state: RequestState, found: Found, tokens: int) -> None:
        block_tokens = self._whole[0].block_tokens if self._whole else self._step_tokens
        blocks = tokens // block_tokens
        tiers = found.tiers[:blocks] or (Tier.HOST,) * blocks
        state.sources = {tier: tiers.count(tier) * block_tokens for tier in set(tiers)}
        for tier, count in state.sources.items():
            self._stats.add("hit_tokens", count, tier.name.lower())
            self._stats.add("hit_blocks", count // block_tokens, tier.name.lower())

    def sources(self, request: Any, tokens: int) -> dict[CacheHitSource, int]:
        """Where the `tokens` of a request's load come from."""
        state = self._requests.get(request.request_id)
        found = {
            _SOURCES.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED): count
            for tier, count in (state.sources.items() if state else ())
        }
        if sum(found.values()) != tokens:
            return {CacheHitSource.EXTERNAL_UNSPECIFIED: tokens}
        return found

    def plan(self, output: Any) -> Plan:
        """What the workers are to do in this step."""
        if not self._is_ready():
            return Plan()
        prompt_tokens = other_tokens = 0
        for request_id, tokens in output.num_scheduled_tokens.items():
            state = self._requests.get(request_id)
            if state is None:
                continue
            request = state.request
            is_prompt = request.num_computed_tokens < request.num_prompt_tokens
            prompt_tokens += tokens if is_prompt else 0
            other_tokens += 0 if is_prompt else tokens
            if self._stores:
                ids = output.kv_connector_block_state.get_block_ids(request_id)
                fewest = 1 if is_prompt else _DECODED_BLOCKS
                self._plan_stores(state, request.num_computed_tokens + tokens, ids, fewest)
        if output.total_num_scheduled_tokens:
            self._speed.begin(prompt_tokens, other_tokens)
        self._prefetch_waiting()
        plan = Plan(
            self._fields,
            self._new_loads,
            self._new_stores,
            overwritten(self._groups, self._new_loads, output),
            self._finished,
            not output.total_num_scheduled_tokens,
        )
        self._new_loads, self._new_stores, self._finished = [], [], set()
        return plan

    @guarded(None)
    def _plan_stores(
        self, state: RequestState, computed: int, ids: Sequence[Sequence[int]], fewest: int
    ) -> None:
        """Plans what is full once `computed` tokens are, if at least `fewest` blocks of it are new.

        The first store of a request begins at its first block: what the agent has of these is not
        copied, but kept together with what follows.
        """
        request = state.request
        state.notice_preemption()
        if state.known_tokens is None:
            state.known_tokens = request.num_computed_tokens
        full_tokens = min(computed, len(request.block_hashes) * self._hash_tokens)
        parts, restarts = [], not any(state.stored)
        for place, group in enumerate(self._groups):
            first, stop = state.stored[place], full_tokens // group.block_tokens
            if stop - max(first, state.known_tokens // group.block_tokens) < fewest:
                continue
            state.stored[place] = stop
            blocks = _blocks(group, request.block_hashes, ids[group.index], first, stop)
            if blocks.hashes:
                parts.append(blocks)
        if parts:
            state.has_stores = True
            self._new_stores.append(Store(request.request_id, parts, restarts))

    @guarded(False)
    def finish(self, request: Any, ids: Sequence[Sequence[int]]) -> bool:
        """Plans the last stores; whether the blocks must be kept until the workers are done.

        Free blocks are used again in the order in which they became free, and a store ends before
        a block that it reads is overwritten. So they are kept only where that would come soon: as
        long as some are, the engine does not rest.
        """
        state = self._requests.pop(request.request_id, None)
        if state is None or state.loading or not self._stores or not self._is_ready():
            return False
        if state.known_tokens is not None and any(ids):
            self._plan_stores(state, request.num_computed_tokens, ids, 1)
        if not state.has_stores or self._has_room():
            return False
        self._finished.add(request.request_id)
        return True

    def _has_room(self) -> bool:
        """Whether much of the paged cache is free."""
        pool = self._pool
        return pool is not None and pool.get_num_free_blocks() > pool.num_gpu_blocks * _ROOM

    @guarded(None)
    def received(self, request_ids: Iterable[str]) -> None:
        """The loads of these requests have ended, well or not."""
        for request_id in request_ids:
            state = self._requests.get(request_id)
            if state is not None:
                state.loading = False

    @guarded(None)
    def step_ended(self) -> None:
        """The workers' output of the oldest step has come."""
        self._speed.end()

    def take_stats(self) -> KvtierStats | None:
        return self._stats.take()

    def close(self) -> None:
        self._prefetcher.close()
        self._client.close()

    @guarded(False)
    def _is_ready(self) -> bool:
        """Whether blocks can be named: the workers have said how they keep them."""
        if self._namespace is None and self._layouts:
            fields = namespace_fields(
                self._config, self._kv_cache, self._groups, self._layouts, self._settings
            )
            if self._reset:
                fields["extra"]["reset"] = self._reset
            spec = NamespaceSpec(**fields)
            log.info("kvtier: blocks are kept in namespace %s", spec.label)
            self._fields, self._namespace = fields, self._client.namespace(spec)
        return self._namespace is not None

    @guarded(None)
    def _prefetch_waiting(self) -> None:
        """For new requests that wait for their turn, what slower tiers have of them is fetched."""
        arrived, self._arrived = self._arrived, []
        if self._namespace is None or not self._loads or not self._client.is_connected:
            return
        for state in arrived:
            for group in self._whole if not state.asked else ():
                stop = state.request.num_tokens // group.block_tokens
                hashes = group.hashes(state.request.block_hashes, 0, stop)[:MOST_BLOCKS]
                if hashes:
                    self._prefetcher.ask(self._namespace, group.number, hashes)


def _blocks(
    group: Group,
    hashes: Sequence[bytes],
    ids: Sequence[int],
    first: int,
    stop: int,
    hold_id: int = 0,
) -> Blocks:
    """Blocks `first` to `stop` of a request, without those that vLLM has given up (id 0).

    It gives up the beginning of a window group, so what is left is consecutive.
    """
    stop = min(stop, len(ids))
    while first < stop and not ids[first]:
        first += 1
    names = group.hashes(hashes, first, stop)
    chosen = list(ids[first : first + len(names)])
    parent = group.parent(hashes, first) if names else b""
    return Blocks(group.number, names, chosen, parent, first, hold_id)
